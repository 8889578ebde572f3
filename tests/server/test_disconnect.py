"""A client that goes away, or that does not read, ends its own request and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from octavo.server.settings import ServerSettings
from octavo.server.wire import Stream


class Wire:
    """One ASGI call by hand: the body at once, then silence until ``hang_up``."""

    def __init__(self, app: Any, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.blocked = False
        self._app = app
        self._body = json.dumps(body).encode()
        self._gone = asyncio.Event()
        self._read = False
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._app(self._scope, self._receive, self._send))

    def hang_up(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.blocked:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """A bounded event loop."""

    async def bounded() -> None:
        await asyncio.wait_for(test(), 10)

    asyncio.run(bounded())


async def until(condition: Callable[[], Any]) -> None:
    """Let others run until `condition` holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


CHAT: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "x"},
    "/generate": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": CHAT, "max_tokens": 50},
    "/api/generate": {"model": "pocket", "prompt": "x"},
    "/api/chat": {"model": "pocket", "messages": CHAT},
    "/invocations": {"prompt": "x"},
}


@pytest.mark.parametrize("tokens_before", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", list(BODIES))
def test_hanging_up_aborts_the_job(client: Any, path: str, stream: bool, tokens_before: int) -> None:
    async def test() -> None:
        client.fake.gate = asyncio.Semaphore(tokens_before)
        app = client.app()
        wire = Wire(app, path, {**BODIES[path], "stream": stream})
        task = wire.start()
        await until(lambda: client.fake.live and client.fake.gate.locked())
        wire.hang_up()
        await task
        assert len(client.fake.aborted) == 1, "aborted at once, without another token"
        assert client.fake.live == set()
        assert app.state.octavo.active == 0

    run(test)


def test_hanging_up_with_many_prompts(client: Any) -> None:
    async def test() -> None:
        client.fake.gate = asyncio.Semaphore(4)
        wire = Wire(client.app(), "/v1/completions", {"prompt": ["a", "b", "c"], "n": 2, "stream": True})
        task = wire.start()
        await until(lambda: len(client.fake.live) == 3 and client.fake.gate.locked())
        wire.hang_up()
        await task
        assert len(client.fake.aborted) == 3

    run(test)


def test_other_requests_go_on(client: Any) -> None:
    async def test() -> None:
        client.fake.gate = asyncio.Semaphore(0)
        app = client.app()
        body = {**BODIES["/v1/completions"], "stream": True}
        wires = [Wire(app, "/v1/completions", body) for _ in range(3)]
        tasks = [wire.start() for wire in wires]
        await until(lambda: len(client.fake.live) == 3)
        wires[1].hang_up()
        await tasks[1]
        for _ in range(60):
            client.fake.gate.release()
        await asyncio.gather(*tasks)
        assert len(client.fake.aborted) == 1
        assert wires[0].body.endswith(b"data: [DONE]\n\n")
        assert wires[2].body.endswith(b"data: [DONE]\n\n")

    run(test)


def test_gone_before_the_body_is_there(client: Any) -> None:
    async def test() -> None:
        wire = Wire(client.app(), "/v1/completions", BODIES["/v1/completions"])
        wire._read = True
        wire.hang_up()
        await wire.start()
        assert client.fake.jobs == []

    run(test)


def test_a_body_that_does_not_come_is_given_up(client: Any) -> None:
    async def test() -> None:
        client.settings["slow_reader_timeout_s"] = 0.03
        wire = Wire(client.app(), "/v1/completions", {})
        wire._read = True
        await wire.start()
        assert wire.sent[0]["status"] == 408
        assert b"RequestTimeoutError" in wire.body

    run(test)


@pytest.mark.parametrize("path", list(BODIES))
def test_a_reader_that_takes_nothing_is_cut(client: Any, caplog: Any, path: str) -> None:
    caplog.set_level(logging.WARNING, "octavo")

    async def test() -> None:
        client.settings["slow_reader_timeout_s"] = 0.04
        wire = Wire(client.app(), path, {**BODIES[path], "stream": True})
        wire.blocked = False
        client.fake.gate = asyncio.Semaphore(3)
        task = wire.start()
        await until(lambda: len(wire.sent) >= 2 and client.fake.gate.locked())
        wire.blocked = True
        sent = len(wire.sent)
        for _ in range(5):
            client.fake.gate.release()
        await task
        assert len(client.fake.aborted) == 1
        assert len(wire.sent) == sent

    run(test)
    assert "took nothing" in caplog.text


def test_a_slow_model_is_not_a_slow_reader(client: Any) -> None:
    async def test() -> None:
        client.settings["slow_reader_timeout_s"] = 0.02
        client.fake.says, client.fake.delay_s = "ab", 0.06
        wire = Wire(client.app(), "/v1/completions", {"prompt": "x", "stream": True})
        await wire.start()
        assert wire.body.endswith(b"[DONE]\n\n")

    run(test)


def test_pieces_are_not_made_ahead_of_the_reader() -> None:
    async def test() -> None:
        made = 0

        async def pieces() -> Any:
            nonlocal made
            while True:
                made += 1
                yield b"x" * 1000

        closed = asyncio.Event()

        async def on_close() -> None:
            closed.set()

        wire = Wire(Stream(pieces(), ServerSettings(slow_reader_timeout_s=0), on_close=on_close), "/", {})
        wire._read = True
        blocked_after = 5
        send = wire._send

        async def slow(message: dict[str, Any]) -> None:
            wire.blocked = len(wire.sent) > blocked_after
            await send(message)

        wire._send = slow  # type: ignore[method-assign]
        task = wire.start()
        await until(lambda: wire.blocked)
        await asyncio.sleep(0.01)
        assert made == blocked_after + 1
        wire.hang_up()
        await task
        assert closed.is_set()

    run(test)


def test_keep_alive_comments(client: Any) -> None:
    async def test() -> None:
        client.settings["sse_keep_alive_interval"] = 0.01
        client.fake.gate = asyncio.Semaphore(0)
        wire = Wire(client.app(), "/v1/chat/completions", {**BODIES["/v1/chat/completions"], "stream": True})
        task = wire.start()
        await until(lambda: wire.body.count(b": keep-alive\n\n") >= 2)
        for _ in range(20):
            client.fake.gate.release()
        await task
        assert wire.body.endswith(b"data: [DONE]\n\n")
        events = [e for e in wire.body.split(b"\n\n") if e and not e.startswith(b":")]
        assert all(e.startswith(b"data: ") for e in events), "comments stand between events"

    run(test)


def test_load_counts_streams(client: Any) -> None:
    async def test() -> None:
        client.fake.gate = asyncio.Semaphore(0)
        app = client.app()
        wire = Wire(app, "/v1/completions", {"prompt": "x", "stream": True})
        task = wire.start()
        await until(lambda: client.fake.live)
        assert app.state.octavo.active == 1
        wire.hang_up()
        await task
        assert app.state.octavo.active == 0

    run(test)
