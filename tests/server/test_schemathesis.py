"""Requests drawn from the server's own OpenAPI document: no 500, no hang, replies as the document says."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("octavo._native", reason="the extension is not built")

import schemathesis
from fake_service import FakeService
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from running import LIMIT_S, serving
from schemathesis.specs.openapi.checks import response_schema_conformance

from octavo.server.app import build_app
from octavo.server.settings import ServerSettings

HI = [{"role": "user", "content": "Hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [HI, HI], "max_tokens": 4},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/responses/input_tokens": {"input": "Hi"},
    "/v1/messages": {"model": "pocket", "messages": HI, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": "pocket", "messages": HI},
    "/v1/embeddings": {"input": "Hi"},
    "/v2/embed": {"texts": ["Hi"], "model": "pocket", "input_type": "search_query"},
    "/pooling": {"input": "Hi"},
    "/classify": {"input": "Hi"},
    "/score": {"text_1": "a", "text_2": "b"},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/rerank": {"query": "a", "documents": ["b", "c"]},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
    "/v2/rerank": {"query": "a", "documents": ["b", "c"]},
    "/generative_scoring": {"query": "a", "items": ["b"], "label_token_ids": [5, 6]},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5, 6]},
    "/generate": {"prompt": "Hi", "max_tokens": 4},
    "/api/generate": {"model": "pocket", "prompt": "Hi", "options": {"num_predict": 4}},
    "/api/chat": {"model": "pocket", "messages": HI, "options": {"num_predict": 4}},
    "/api/embed": {"model": "pocket", "input": "Hi"},
    "/api/embeddings": {"model": "pocket", "prompt": "Hi"},
    "/api/show": {"model": "pocket"},
}
"""A body that every door takes, so that what is drawn gets past the door."""


def drawn(examples: int) -> Any:
    """Settings for that many examples, the same in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )


def judge(case: Any, response: Any) -> None:
    """No failure of ours, and JSON in the shape of the document."""
    assert response.status_code < 500, (case.operation.label, case.body, response.text)
    if response.headers.get("content-type", [""])[0].startswith("application/json"):
        case.validate_response(response, checks=[response_schema_conformance])


def operations(schema: Any) -> list[Any]:
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 20
    return found


def test_drawn_requests() -> None:
    """Every field at random: nearly all of them are refused."""
    fake = FakeService("ab")
    app = build_app(fake, ServerSettings(max_stored_responses=20, allowed_hosts=("*",)))
    for operation in operations(schemathesis.openapi.from_asgi("/openapi.json", app)):

        @drawn(5)
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            judge(case, case.call(timeout=10))

        send()
        assert fake.live == set(), operation.label


@pytest.mark.parametrize("config", [{}, {"runner": "pooling", "convert": "embed"}], ids=["generate", "embed"])
def test_good_requests_with_a_drawn_field(config: dict[str, Any]) -> None:
    """The bundled model, and bodies of which one or two fields are random: most of them are answered."""
    answered = set()
    with serving(**config) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        known = [operation for operation in operations(schema) if operation.path in GOOD]
        assert {operation.path for operation in known} == set(GOOD)
        for operation in known:

            @drawn(12)
            @given(case=operation.as_strategy(), data=st.data())
            def send(case: Any, data: st.DataObject) -> None:
                fields = sorted(case.body.keys() - {"model"}) if isinstance(case.body, dict) else []
                some = data.draw(st.lists(st.sampled_from(fields), max_size=2, unique=True)) if fields else []
                case.body = {**GOOD[case.operation.path], **{name: case.body[name] for name in some}}
                begun_s = time.monotonic()
                response = case.call(timeout=LIMIT_S)
                assert time.monotonic() - begun_s < LIMIT_S
                judge(case, response)
                if response.status_code == 200:
                    answered.add(case.operation.path)

            send()
        assert server.service.open_jobs == 0
    assert len(answered) >= 11, answered


@pytest.mark.parametrize(
    ("paths", "reached"),
    [
        ("responses", {"GET /v1/responses/{response_id}", "DELETE /v1/responses/{response_id}"}),
        (
            "files|batches",
            {"GET /v1/files/{name}", "GET /v1/files/{name}/content", "DELETE /v1/files/{name}"},
        ),
    ],
)
def test_what_is_made_is_used(paths: str, reached: set[str]) -> None:
    """The document's links: what one request makes (a response, a file), the next ones take."""
    fake, answered = FakeService("ab"), set()
    app = build_app(fake, ServerSettings(max_stored_responses=20, allowed_hosts=("*",)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex=f"^/v1/({paths})")
    schema.config.phases.stateful.inference.algorithms = []  # the document's own links are enough

    class Machine(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            case.body = GOOD.get(case.operation.path, case.body)

        def validate_response(self, response: Any, case: Any, *args: Any, **kwargs: Any) -> None:
            judge(case, response)
            if response.status_code == 200:
                answered.add(case.operation.label)

    run_state_machine_as_test(
        Machine, settings=settings(drawn(15), stateful_step_count=8, phases=[Phase.generate])
    )
    assert reached <= answered, answered
    assert fake.live == set()
