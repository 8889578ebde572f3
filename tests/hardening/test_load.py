"""More load than there is room for, readers that leave or dawdle: bounded, and nobody else suffers."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from contextlib import closing
from typing import Any

import httpx
import pytest
from live import Start
from test_package import ROOT, script

LONG = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}


def request_bytes(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.parametrize(
    ("bounds", "prompt"),
    [({"max_queued_requests": 3}, "x"), ({"max_queued_tokens": 300}, "word " * 60)],
    ids=["requests", "tokens"],
)
def test_beyond_the_queue_it_is_429_and_the_accepted_finish(
    start: Start, bounds: dict[str, int], prompt: str
) -> None:
    live = start({"max_num_seqs": 2, **bounds})
    body = {"prompt": prompt, "max_tokens": 60, "ignore_eos": True}

    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(40)))

    answers = asyncio.run(go())
    accepted = [a for a in answers if a.status_code == 200]
    refused = [a for a in answers if a.status_code == 429]
    assert len(accepted) + len(refused) == 40
    assert 3 <= len(accepted) < 40
    assert all(a.json()["usage"]["completion_tokens"] == 60 for a in accepted)
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    assert all(a.json()["error"]["type"] == "RateLimitError" for a in refused)
    live.idle()
    assert httpx.post(f"{live.url}/v1/completions", json=body, timeout=30).status_code == 200


def test_a_slow_reader_delays_no_one_and_is_cut(start: Start) -> None:
    live = start(slow_reader_timeout_s=0.6)
    body = {**LONG, "max_tokens": 1500, "stream": True, "n": 8, "logprobs": 20}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", live.port))
        slow.sendall(request_bytes(body))
        live.until(lambda: live.service.stats().running >= 1)
        for _ in range(3):
            assert slow.recv(1)
            begun = time.monotonic()
            quick = httpx.post(
                f"{live.url}/v1/completions", json={"prompt": "x", "max_tokens": 5}, timeout=20
            )
            assert quick.status_code == 200
            assert time.monotonic() - begun < 5.0
        stats = live.idle()  # with the connection still open: it was cut
    assert stats.generation_tokens_total < 8 * 1500


def test_keys_share_no_cached_prompt(start: Start) -> None:
    live = start(api_keys=("one", "two"), enable_prompt_tokens_details=True)
    body = {"prompt": list(range(100, 180)), "max_tokens": 1}

    def cached(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        reply = httpx.post(f"{live.url}/v1/completions", json=body, headers=headers, timeout=20).json()
        return int((reply["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    assert [cached(key) for key in ("one", "one", "two", "two")] == [0, 64, 0, 64]


def test_the_time_of_an_answer_tells_no_key_what_another_one_asked(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few pairs of benchmarks/two_keys.py: what one key can tell of its own prompts, another one cannot."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    keys = script("benchmarks/two_keys.py")
    live = start({"kv_cache_memory_bytes": 64 << 20}, api_keys=("one", "two"))
    draw = random.Random(0)
    with closing(keys.Client(live.port, "one")) as one, closing(keys.Client(live.port, "two")) as two:
        keys.differences(one, two, 3, draw)
        assert keys.chance(keys.differences(one, one, 12, draw)) < 0.01
        assert keys.chance(keys.differences(one, two, 20, draw)) > 1e-4
