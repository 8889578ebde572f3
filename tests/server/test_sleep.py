"""Development routes, and SageMaker's one route for all."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from running import LIMIT_S, Running

HI = {"messages": [{"role": "user", "content": "Hi"}]}
PATHS = (
    *(("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping"), ("POST", "/reset_prefix_cache")),
    *(("POST", "/pause"), ("POST", "/resume"), ("GET", "/is_paused"), ("POST", "/abort_requests")),
)


def test_they_are_closed_unless_asked_for(client: Any) -> None:
    for method, path in PATHS:
        assert client.send(method, path).status_code == 404
    client.settings.update(dev_mode=True, host="0.0.0.0")
    for method, path in PATHS:
        assert client.send(method, path).status_code == 404, "anybody could reach them"
    client.settings["api_keys"] = ("k",)
    for method, path in PATHS:
        assert client.send(method, path).status_code == 401


def test_sleeping_and_waking() -> None:
    from fake_service import FakeService

    fake = FakeService()
    ask = {"prompt": "x"}
    with Running(fake, dev_mode=True) as server, httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        assert http.post("/sleep", params={"level": "9"}).status_code == 400
        assert http.get("/is_sleeping").json() == {"is_sleeping": False}
        assert http.post("/sleep", params={"level": 1}).status_code == 200
        assert http.get("/is_sleeping").json() == {"is_sleeping": True}
        assert fake.chores == ["rest"]
        refused = http.post("/v1/completions", json=ask)
        assert refused.status_code == 503
        assert "wake_up" in refused.json()["error"]["message"]
        assert http.get("/health").status_code == 200
        assert http.post("/wake_up").status_code == 200
        assert http.post("/v1/completions", json=ask).status_code == 200
        assert http.post("/reset_prefix_cache").status_code == 200
        assert fake.chores == ["rest", "reset"]


async def under_way(fake: Any, http: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    """A completion that the engine has begun."""
    running = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x"}))
    while not fake.live:
        await asyncio.sleep(0.001)
    return running


def test_running_requests_finish_before_it_sleeps() -> None:
    from fake_service import FakeService

    fake = FakeService()
    fake.gate = asyncio.Semaphore(2)

    async def go(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            running = await under_way(fake, http)
            sleeping = asyncio.create_task(http.post("/sleep"))
            while not (await http.get("/is_sleeping")).json()["is_sleeping"]:
                pass
            assert fake.chores == []
            for _ in fake.says:
                fake.gate.release()  # type: ignore[union-attr]
            assert (await running).json()["choices"][0]["text"] == fake.says
            assert (await sleeping).status_code == 200
            assert fake.chores == ["rest"]

    with Running(fake, dev_mode=True) as server:
        asyncio.run(go(server.url))


@pytest.mark.parametrize("mode", ["abort", "wait"])
def test_a_pause_holds_new_requests_back(mode: str) -> None:
    from fake_service import FakeService

    fake = FakeService()
    fake.gate = asyncio.Semaphore(2)

    async def go(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            running = await under_way(fake, http)
            pausing = asyncio.create_task(http.post("/pause", params={"mode": mode}))
            while not (await http.get("/is_paused")).json()["is_paused"]:
                pass
            for _ in fake.says * 2:
                fake.gate.release()  # type: ignore[union-attr]
            first = (await running).json()["choices"][0]
            assert (first["finish_reason"] == "abort") == (mode == "abort") == (first["text"] != fake.says)
            assert (await pausing).json() == {"status": "paused"}
            assert fake.chores == ["reset"]
            waiting = asyncio.create_task(http.post("/v1/completions", json={"prompt": "y"}))
            assert (await http.get("/health")).status_code == 200
            while (await http.get("/load")).json()["server_load"] != 1:
                pass
            assert (fake.live, waiting.done()) == (set(), False)
            assert (await http.post("/resume")).json() == {"status": "resumed"}
            assert (await waiting).json()["choices"][0]["text"] == fake.says
            assert (await http.get("/is_paused")).json() == {"is_paused": False}
            assert (await http.post("/pause", params={"mode": "keep"})).status_code == 400
            kept = await http.post("/pause", params={"clear_cache": "false"})
            assert (kept.status_code, fake.chores) == (200, ["reset"])

    with Running(fake, dev_mode=True) as server:
        asyncio.run(go(server.url))  # and it stops, though it is paused


@pytest.mark.parametrize("mode", ["abort", "wait"])
def test_a_pause_knows_of_requests_on_their_way(mode: str) -> None:
    from fake_service import FakeService

    fake = FakeService()
    ready, submit, begun = asyncio.Event(), fake.submit, threading.Event()

    async def slowly(job: Any) -> Any:
        begun.set()
        await ready.wait()
        return await submit(job)

    fake.submit = slowly  # type: ignore[method-assign]

    async def go(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            coming = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x"}))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            pausing = asyncio.create_task(http.post("/pause", params={"mode": mode}))
            while not (await http.get("/is_paused")).json()["is_paused"]:
                pass
            assert not pausing.done()
            server._loop.call_soon_threadsafe(ready.set)
            await pausing
            assert fake.live == set()
            ended = (await coming).json()["choices"][0]["finish_reason"]
            assert ended in {"abort": ("abort", "stop"), "wait": ("stop",)}[mode]

    with Running(fake, dev_mode=True) as server:
        asyncio.run(go(server.url))


@pytest.mark.parametrize("names", [["chatcmpl-mine"], ["mine"], None])
def test_requests_are_ended_by_their_ids(names: list[str] | None) -> None:
    from fake_service import FakeService

    fake = FakeService()
    fake.gate = asyncio.Semaphore(2)

    async def go(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            asked = [
                asyncio.create_task(
                    http.post("/v1/chat/completions", json={**HI, "n": 2}, headers={"x-request-id": name})
                )
                for name in ("mine", "theirs")
            ]
            while len(fake.live) < 2:
                await asyncio.sleep(0.001)
            body = {} if names is None else {"request_ids": [*names, "unknown"]}
            assert (await http.post("/abort_requests", json=body)).status_code == 200
            mine, theirs = [name.startswith("chatcmpl-mine") for name in fake.aborted], len(fake.live)
            assert (sum(mine), theirs) == ((1, 0) if names is None else (1, 1))
            for _ in fake.says * 2:
                fake.gate.release()  # type: ignore[union-attr]
            ends = [{choice["finish_reason"] for choice in (await one).json()["choices"]} for one in asked]
            assert ends == [{"abort"}, {"abort"} if names is None else {"stop"}]
            assert (await http.post("/abort_requests", json={"request_ids": "x"})).status_code == 400

    with Running(fake, dev_mode=True) as server:
        asyncio.run(go(server.url))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, "chat.completion"),
        ({"prompt": "Hi"}, "text_completion"),
    ],
)
def test_invocations(client: Any, body: dict[str, Any], kind: str) -> None:
    assert client.post("/invocations", body).json()["object"] == kind
    assert client.post("/invocations", {**body, "stream": True}).text.endswith("data: [DONE]\n\n")
    assert client.post("/invocations", {**body, "temperature": 9}).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b'{"x": 1}', json.dumps([1]).encode()])
def test_bad_invocations(client: Any, body: bytes) -> None:
    response = client.send("POST", "/invocations", content=body)
    assert response.status_code == 400
    assert "prompt" in response.json()["error"]["message"]


def test_a_client_that_leaves_ends_its_invocation() -> None:
    from fake_service import FakeService

    fake = FakeService()
    fake.gate = asyncio.Semaphore(3)
    body = {"prompt": "Hi", "stream": True}
    with Running(fake) as server:
        with httpx.stream("POST", f"{server.url}/invocations", json=body, timeout=LIMIT_S) as response:
            next(response.iter_lines())
        for _ in range(2000):
            if fake.aborted:
                break
            httpx.get(f"{server.url}/health")
    assert fake.aborted
