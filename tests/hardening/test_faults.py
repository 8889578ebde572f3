"""The engine breaks under load: everyone gets an answer, probes tell the truth, nothing leaks."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from live import Live, Start

from octavo.engine import watch
from octavo.errors import StepFailed

SECRET = "secret /home/someone 0xdeadbeef"
LONG = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}


def break_engine(live: Live, broken: threading.Event, error: BaseException) -> None:
    """Every step raises while `broken` is set."""
    run = live.engine._executor.run

    def failing(plan: Any) -> Any:
        if broken.is_set():
            raise error
        return run(plan)

    live.engine._executor.run = failing  # type: ignore[method-assign]


def test_a_dead_engine_answers_everyone_and_says_so(start: Start) -> None:
    live = start({"max_num_seqs": 4})
    broken = threading.Event()
    break_engine(live, broken, RuntimeError(SECRET))

    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:
            bodies = [{**LONG, "stream": i % 2 == 0} for i in range(8)]  # four of them wait
            tasks = [asyncio.create_task(client.post("/v1/completions", json=body)) for body in bodies]
            while live.service.stats().generation_tokens_total < 8:
                await asyncio.sleep(0.005)
            broken.set()
            return await asyncio.gather(*tasks)

    answers = asyncio.run(go())
    for answer in answers:
        assert SECRET not in answer.text
        assert "deadbeef" not in answer.text
        if answer.status_code == 200:
            assert answer.text.endswith("data: [DONE]\n\n")
            assert answer.text.count('"error"') == 1
        else:
            assert answer.json()["error"]["code"] == answer.status_code == 500
    live.until(lambda: httpx.get(f"{live.url}/health").status_code == 503, 1.0)
    late = httpx.post(f"{live.url}/v1/completions", json=LONG)
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert SECRET not in late.text
    for path in ("/version", "/metrics"):
        assert httpx.get(live.url + path).status_code == 200, path


def test_a_failed_step_costs_only_its_newcomers(start: Start) -> None:
    live = start()
    run = live.engine._executor.run

    def failing(plan: Any) -> Any:
        """As the inline executor does when the runner raises: only steps with a marked newcomer."""
        if any(new.sampling.seed == 13 for new in plan.new):
            raise StepFailed(SECRET)
        return run(plan)

    async def go() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:
            old = asyncio.create_task(client.post("/v1/completions", json=LONG))
            while live.service.stats().generation_tokens_total < 2:
                await asyncio.sleep(0.005)
            new = await client.post("/v1/completions", json={**LONG, "prompt": "Twice", "seed": 13})
            return await old, new

    live.engine._executor.run = failing  # type: ignore[method-assign]
    old, new = asyncio.run(go())
    assert new.status_code == 500
    assert SECRET not in new.text
    assert old.json()["usage"]["completion_tokens"] == 400
    assert httpx.get(f"{live.url}/health").status_code == 200
    live.idle()


def test_a_stuck_step_makes_it_not_ready_until_it_comes_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(watch, "_TIMES", 0.0)
    live = start()
    run, stuck, free = live.engine._executor.run, threading.Event(), threading.Event()

    def waits(plan: Any) -> Any:
        if stuck.is_set():
            assert free.wait(20)
        return run(plan)

    live.engine._executor.run = waits  # type: ignore[method-assign]
    httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "max_tokens": 2})
    stuck.set()

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:
            pending = asyncio.create_task(client.post("/v1/completions", json={**LONG, "max_tokens": 5}))
            while (await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.01)
            assert (await client.post("/v1/completions", json=LONG)).status_code == 503
            stuck.clear()
            free.set()
            return await pending

    assert asyncio.run(go()).json()["usage"]["completion_tokens"] == 5
    assert httpx.get(f"{live.url}/health").status_code == 200
    live.idle()
