"""Bodies that nobody would send: the answer is 200 or a 4xx error object, never a 500, and nothing leaks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fake_service import FakeService
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.server.app import build_app
from octavo.server.legacy import GenerateRequest
from octavo.server.openai.requests import ChatRequest, CompletionRequest
from octavo.server.settings import ServerSettings
from octavo.server.tokens import DetokenizeRequest, TokenizeRequest
from octavo.types.sampling import SamplingParams

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
    "/tokenize": (TokenizeRequest.__struct_fields__, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest.__struct_fields__, {"tokens": [1]}),
}


def post(path: str, **kwargs: Any) -> tuple[httpx.Response, FakeService]:
    """One request to a fresh application."""
    fake = FakeService("ab")
    app = build_app(fake, ServerSettings(max_sequences=64, max_body_bytes=100_000))

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
    error = response.json()["error"]
    assert error["code"] == response.status_code
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["authorization", "x-api-key", "host", "origin", "x-request-id", "content-type"]),
    value=st.binary(max_size=40),
)
def test_odd_headers(name: str, value: bytes) -> None:
    response, fake = post("/v1/completions", json={"prompt": "x"}, headers={name.encode(): value})
    check(response, fake)
