"""Bodies that nobody would send: the answer is 200 or a 4xx error object, never a 500, and nothing leaks."""

from __future__ import annotations

import asyncio
import copy
import functools
import random
import re
from typing import Any

import httpx
import pytest
from fake_service import FakeService
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from octavo.server.anthropic.requests import MessagesRequest
from octavo.server.app import build_app
from octavo.server.legacy import GenerateRequest
from octavo.server.openai.requests import ChatRequest, CompletionRequest
from octavo.server.openai.responses.requests import ResponsesRequest
from octavo.server.openai.scoring import ScoringRequest
from octavo.server.settings import ServerSettings
from octavo.server.sleep import AbortRequest
from octavo.server.tokens import DetokenizeRequest, TokenizeRequest
from octavo.types.sampling import SamplingParams

INSIDES = re.compile(r"0x[0-9a-f]{4}|Traceback|File \"|/octavo/|site-packages|\.py\b|object at|Errno")
ODD = [
    0, -1, 1, 2, 20, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, 0.0, -0.0, 0.5, 1.5,
    1e300, -1e300, 5e-324, True, False, None, "", "x", "\0", "🙂", "a" * 500, "auto", "none", [], {}, [[]],
    [None], [{}], [[[[]]]], {"": ""}, {"type": "text"}, {"type": "function"}, ["stop"], [1, 2], [1, "a"],
    [[1], [2]], ["a", "b"], [{"role": "user", "content": "x"}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    {"1": 2},
    {"include_usage": True},
]  # fmt: skip
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

ROUTES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatRequest.__struct_fields__,
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    ),
    "/v1/completions": (CompletionRequest.__struct_fields__, {"prompt": "x", "max_tokens": 3}),
    "/generate": (
        (*GenerateRequest.__struct_fields__, *SamplingParams.__struct_fields__),
        {"prompt": "x", "max_tokens": 3},
    ),
    "/v1/responses": (
        tuple(n for n in ResponsesRequest.__struct_fields__ if n not in ("background", "input")),
        {"input": "x", "max_output_tokens": 3},
    ),
    "/v1/messages": (
        MessagesRequest.__struct_fields__,
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    ),
    "/tokenize": (TokenizeRequest.__struct_fields__, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest.__struct_fields__, {"tokens": [1]}),
    "/generative_scoring": (
        ScoringRequest.__struct_fields__,
        {"query": "x", "items": ["y", [1]], "label_token_ids": [1, 2]},
    ),
    "/abort_requests": (AbortRequest.__struct_fields__, {"request_ids": ["x"]}),
}


@functools.cache
def application() -> tuple[ASGIApp, FakeService]:
    """One for all examples: none may spoil it for the next."""
    fake = FakeService("ab")
    settings = ServerSettings(
        max_sequences=64,
        max_body_bytes=100_000,
        max_stored_responses=10,
        dev_mode=True,
        allow_runtime_lora=True,
    )
    return build_app(fake, settings), fake


def post(path: str, **kwargs: Any) -> tuple[httpx.Response, FakeService]:
    """One request."""
    app, fake = application()
    fake.jobs.clear()

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await asyncio.wait_for(client.post(path, **kwargs), 10)

    return asyncio.run(go()), fake


def check(response: httpx.Response, fake: FakeService) -> None:
    assert fake.live == set()
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    assert not INSIDES.search(response.text), response.text
    error = response.json()["error"]
    if isinstance(error, str):  # Ollama's shape
        assert error
        return
    assert error.get("code", response.status_code) == response.status_code
    assert error["message"]


@pytest.mark.parametrize("path", list(ROUTES))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_fields_with_odd_values(path: str, data: st.DataObject) -> None:
    names, base = ROUTES[path]
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=4))
    check(*post(path, json={**base, **changes}))


@pytest.mark.parametrize("path", list(ROUTES))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(body=st.binary(max_size=60) | st.dictionaries(st.text(max_size=6), VALUES, max_size=4))
def test_odd_bodies(path: str, body: Any) -> None:
    if isinstance(body, bytes):
        response, fake = post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
    else:
        response, fake = post(path, json=body)
    check(response, fake)


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
DEEP: dict[str, dict[str, Any]] = {
    "/v1/responses": {
        "max_output_tokens": 3,
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "x"}]},
            {
                "type": "reasoning",
                "id": "r",
                "summary": [{"type": "summary_text", "text": "x"}],
                "content": [],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
            {"role": "user", "content": "x"},
        ],
        "tools": [TOOL],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low"},
    },
    "/v1/messages": {
        "max_tokens": 3,
        "system": [{"type": "text", "text": "x"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": "x"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]},
                    {"type": "document", "source": {"type": "text", "data": "x"}, "title": "x"},
                    {"type": "search_result", "content": [{"type": "text", "text": "x"}]},
                ],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    },
}


CHAT = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SHALLOW: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/batch": {
        "messages": [[{"role": "user", "content": "x"}], [{"role": "user", "content": "y"}]],
        "max_tokens": 3,
        "n": 1,
        "thinking_token_budget": 2,
    },
    "/v2/embed": {
        "texts": ["x"],
        "inputs": [{"content": [{"type": "text", "text": "x"}]}],
        "input_type": "search_query",
        "embedding_types": ["float", "binary"],
        "truncate": "END",
        "max_tokens": 3,
        "output_dimension": 2,
    },
    "/api/chat": {
        "model": "pocket",
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
            },
            {"role": "tool", "tool_name": "f", "content": "x"},
        ],
        "stream": False,
        "tools": [FUNCTION],
        "options": {"num_predict": 3, "stop": ["q"], "num_ctx": 64, "temperature": 0.5, "top_k": 5},
        "format": {"type": "object"},
        "think": "low",
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/api/generate": {
        "model": "pocket",
        "prompt": "x",
        "context": [1, 2],
        "system": "x",
        "options": {"num_predict": 3, "seed": 1},
        "keep_alive": "5m",
        "format": "json",
    },
    "/api/embed": {"model": "pocket", "input": ["a", "b"], "truncate": True, "options": {}, "dimensions": 4},
    "/api/embeddings": {"model": "pocket", "prompt": "x"},
    "/api/show": {"model": "pocket", "verbose": True},
    "/api/pull": {"model": "pocket", "stream": False},
    "/v1/responses/input_tokens": {"input": CHAT, "tools": [TOOL]},
    "/v1/messages/count_tokens": {"messages": CHAT, "tools": [{"name": "f", "input_schema": {}}]},
    "/v1/embeddings": {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 4},
    "/pooling": {"input": "x", "task": "embed", "truncate_prompt_tokens": 5},
    "/classify": {"messages": CHAT},
    "/score": {"text_1": "x", "text_2": ["y"]},
    "/rerank": {"query": "x", "documents": ["y", {"text": "z"}], "top_n": 1, "max_tokens_per_doc": 4},
    "/invocations": {"prompt": "x", "max_tokens": 3},
    "/v1/batches": {
        "input_file_id": "file-x",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "b", "load_inplace": False},
    "/v1/unload_lora_adapter": {"lora_name": "a", "lora_int_id": 1},
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in [(value, key), *places(inner)]]


def spoilt(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three values anywhere in it replaced or taken away."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        found = places(body)
        if not found:
            break
        container, key = rng.choice(found)
        if rng.random() < 0.7:
            container[key] = copy.deepcopy(rng.choice(ODD))
        else:
            del container[key]
    return body


@pytest.mark.parametrize("path", list(DEEP))
def test_odd_values_anywhere(path: str) -> None:
    rng = random.Random(path)
    fake = FakeService("ab")
    app = build_app(fake, ServerSettings(max_stored_responses=10))

    async def go() -> int:
        good = 0
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(400):
                response = await asyncio.wait_for(client.post(path, json=spoilt(DEEP[path], rng)), 10)
                check(response, fake)
                good += response.status_code == 200
        return good

    assert 20 < asyncio.run(go()) < 380


@pytest.mark.parametrize("path", list(SHALLOW))
def test_odd_values_in_the_other_doors(path: str) -> None:
    rng = random.Random(path)
    for _ in range(80):
        check(*post(path, json=spoilt(SHALLOW[path], rng)))


def test_every_route_that_takes_a_body_is_here() -> None:
    app: Any = application()[0]
    posts = {route.path for route in app.routes if "POST" in route.methods}
    bodiless = {"/ping", "/sleep", "/wake_up", "/reset_prefix_cache", "/pause", "/resume"}
    bodiless |= {"/api/copy", "/api/create", "/api/push"}
    same = {"/v1/score", "/v1/rerank", "/v2/rerank", "/v1/files"}  # handlers that are here, and a form
    rest = {path for path in posts - bodiless - same if "{" not in path}
    assert rest == {*ROUTES, *DEEP, *SHALLOW}


QUERIES = (
    "limit",
    "after",
    "before",
    "order",
    "purpose",
    "starting_after",
    "stream",
    "include",
    "level",
    "tags",
)
TEXTS = (
    "0",
    "-1",
    "9" * 30,
    "0000000011" + "9" * 20,
    "1e400",
    "NaN",
    "²",
    "%00",
    "%ff%fe",
    "",
    "true",
    "x" * 3000,
)
READ = (
    "/v1/files",
    "/v1/batches",
    "/v1/models",
    "/v1/responses/x/input_items",
    "/v1/responses/x",
    "/api/tags",
)


@pytest.mark.parametrize("path", READ)
def test_odd_queries(path: str) -> None:
    app, fake = application()

    async def go() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for name in QUERIES:
                for text in TEXTS:
                    check(await client.get(f"{path}?{name}={text}"), fake)

    asyncio.run(go())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["authorization", "x-api-key", "host", "origin", "x-request-id", "content-type"]),
    value=st.binary(max_size=40),
)
def test_odd_headers(name: str, value: bytes) -> None:
    response, fake = post("/v1/completions", json={"prompt": "x"}, headers={name.encode(): value})
    check(response, fake)
