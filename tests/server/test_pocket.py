"""The doors over the real pipeline, engine and bundled model: nothing leaks, nobody disturbs the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, Running, serving

BAD: list[dict[str, Any]] = [
    {"n": 0},
    {"prompt": [1, 10**6]},
    {"prompt": []},
    {"prompt": "x " * 5000},
    {"temperature": 9},
    {"logit_bias": {"999999": 1}},
    {"logprobs": 1000},
    {"max_tokens": 10**6},
    {"structured_outputs": {"regex": "("}},
    {"stop": [""]},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def idle(service: Any) -> Any:
    """The engine's statistics once nothing runs."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        stats = service.stats()
        if stats.running == stats.waiting == 0:
            return stats
        time.sleep(0.005)
    raise AssertionError("sequences are still running")


def test_streaming_gives_the_same_tokens_as_one_reply(server: Running) -> None:
    fields: Any = {"model": "pocket", "max_tokens": 24, "temperature": 0, "logprobs": True}
    messages: Any = [{"role": "user", "content": "天空为什么是蓝色的？"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S) as client:
        whole = client.chat.completions.create(messages=messages, **fields)
        chunks = list(client.chat.completions.create(messages=messages, stream=True, **fields))
    choice = whole.choices[0]
    assert choice.message.content
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    spelt = "".join(item.token for item in choice.logprobs.content)
    assert spelt.startswith(choice.message.content), "tokens spell the text, the end token aside"
    pieces = [
        item.token for c in chunks if c.choices[0].logprobs for item in c.choices[0].logprobs.content or ()
    ]
    assert pieces == [item.token for item in choice.logprobs.content]


def test_echo_scores_a_prompt(server: Running) -> None:
    body = {"prompt": "Why is the sky blue?", "max_tokens": 0, "echo": True, "logprobs": 2}
    choice = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LIMIT_S).json()["choices"][0]
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == "Why is the sky blue?"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_best_of(server: Running) -> None:
    body = {
        "prompt": "Why",
        "max_tokens": 4,
        "n": 2,
        "best_of": 6,
        "logprobs": 0,
        "ignore_eos": True,
        "seed": 3,
    }
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LIMIT_S).json()
    sums = [sum(c["logprobs"]["token_logprobs"]) for c in reply["choices"]]
    assert [c["index"] for c in reply["choices"]] == [0, 1]
    assert sums == sorted(sums, reverse=True)


def test_bad_requests_disturb_nobody_and_nothing_leaks(server: Running) -> None:
    free = idle(server.service).blocks_free
    good = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True, "temperature": 0}

    async def stream(client: httpx.AsyncClient) -> str:
        return (await client.post("/v1/completions", json=good)).text

    async def leave(client: httpx.AsyncClient) -> None:
        async with client.stream(
            "POST", "/v1/completions", json={**good, "n": 2, "temperature": 1}
        ) as response:
            async for _ in response.aiter_bytes():
                return

    async def refuse(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
        response = await client.post("/v1/completions", json={"prompt": "x", **fields})
        assert response.status_code == 400, (fields, response.text)

    async def go() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=4 * LIMIT_S) as client:
            running = [asyncio.create_task(stream(client)) for _ in range(8)]
            await asyncio.gather(
                *(refuse(client, fields) for fields in BAD), *(leave(client) for _ in range(6))
            )
            return await asyncio.gather(*running)

    texts = asyncio.run(go())
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    plain = {
        "".join(part.partition('"text":"')[2].partition('"')[0] for part in t.split("data: ")) for t in texts
    }
    assert len(plain) == 1, "greedy answers are the same whatever goes on beside them"
    assert idle(server.service).blocks_free == free
