"""--middleware: the operator's own code around the routes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from octavo.errors import ConfigError
from octavo.server.middleware import Around, load

ROOT = Path(__file__).parents[2]


class Stamp:
    """An ASGI middleware that adds a header."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)

        await self.app(scope, receive, stamped)


async def refuse(request: Any, call_next: Any) -> Any:
    """A function that answers in the place of a route, or marks what it says."""

    if request.url.path == "/v1/models":
        return PlainTextResponse("not today", 403)
    response = await call_next(request)
    response.headers["x-function"] = "yes"
    return response


NOT_ONE = 3


def test_classes_and_functions_are_around_the_routes(client: Any, stream: Any) -> None:
    client.settings["middleware"] = (f"{__name__}.Stamp", f"{__name__}:refuse")
    reply = client.complete(max_tokens=2)
    assert reply.json()["choices"][0]["text"] == "He"
    assert (reply.headers["x-stamp"], reply.headers["x-function"]) == ("class", "yes")
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.text, refused.headers["x-stamp"]) == (403, "not today", "class")
    assert len(stream(client.complete(max_tokens=2, stream=True))) >= 2


def test_they_stand_behind_the_guard(client: Any) -> None:
    client.settings |= {"middleware": (f"{__name__}.Stamp",), "api_keys": ("secret",)}
    refused = client.get("/v1/models")
    assert refused.status_code == 401
    assert "x-stamp" not in refused.headers
    passed = client.get("/v1/models", headers={"Authorization": "Bearer secret"})
    assert (passed.status_code, passed.headers["x-stamp"]) == (200, "class")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.Module", "No module named 'no'"),
        (f"{__name__}.Nothing", "has no attribute 'Nothing'"),
        (f"{__name__}.NOT_ONE", "is a int"),
        (f"{__name__}.test_they_stand_behind_the_guard", "is a function"),
        ("Stamp", "Empty module name"),
    ],
)
def test_what_is_none_is_refused_at_the_start(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load([name])
    assert caught.value.param == "--middleware"
    assert "async def" in str(caught.value)


def test_serve_ends_with_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "serve", "--port", "0", "--middleware", "no.such.Thing"],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "--middleware no.such.Thing: No module named 'no'." in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_application_raises_comes_through() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise OSError("no disk")

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return None

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    async def work(app: Any) -> None:
        await Around(app, passing)({"type": "http", "headers": []}, None, None)  # type: ignore[arg-type]

    with pytest.raises(OSError, match="no disk"):
        asyncio.run(work(broken))
    with pytest.raises(RuntimeError, match="ended before"):
        asyncio.run(work(silent))


def test_a_function_may_answer_in_the_place_of_a_response_that_has_begun() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.append("app")

    async def other(request: Any, call_next: Any) -> Any:
        await call_next(request)
        return PlainTextResponse("mine", 418)

    async def work() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await Around(app, other)({"type": "http", "headers": []}, None, send)  # type: ignore[arg-type]
        return sent

    sent = asyncio.run(asyncio.wait_for(work(), 5))
    assert sent[0]["status"] == 418
    assert ended == ["app"], "it was not left waiting"
