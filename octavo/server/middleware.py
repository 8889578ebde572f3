"""``--middleware``: the operator's own classes or functions around the routes, behind the server's guard."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, cast

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ConfigError

_FORM = "Give module.Name of an ASGI middleware class, or of a function `async def name(request, call_next)`."


def load(names: Iterable[str]) -> list[Middleware]:
    """The first is outermost. Raises ConfigError for what cannot be imported or is of another kind."""
    return [_one(name) for name in names]


def _one(name: str) -> Middleware:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--middleware {name}: {error}.", hint=_FORM, param="--middleware") from error
    if inspect.isclass(found):
        return Middleware(cast(Any, found))
    if inspect.iscoroutinefunction(found):
        return Middleware(Around, function=found)
    raise ConfigError(f"--middleware {name} is a {type(found).__name__}.", hint=_FORM, param="--middleware")


class Around:
    """``await function(request, call_next)`` in the place of the application, as Starlette has it.

    Starlette's own puts a task group around `receive`, which a route that watches for its client's leaving
    cannot be cancelled in.
    """

    def __init__(self, app: ASGIApp, function: Callable[..., Awaitable[Response]]) -> None:
        self._app = app
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner: list[_Inner] = []

        async def call_next(request: Request) -> Response:
            inner.append(_Inner(partial(self._app, request.scope, receive)))
            await inner[-1].begin()
            return inner[-1]

        try:
            response = await self._function(Request(scope, receive), call_next)
            await response(scope, receive, send)
        finally:
            for one in inner:
                await one.end()


class _Inner(Response):
    """The application's response: status and headers may be changed, its body is passed on as it comes."""

    def __init__(self, run: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._messages: asyncio.Queue[Message] = asyncio.Queue(1)
        self._task = asyncio.ensure_future(run(self._put))

    async def _put(self, message: Message) -> None:
        """The application's `send`: returns when the message has been taken over."""
        await self._messages.put(message)
        await self._messages.join()

    async def begin(self) -> None:
        """Wait for the head. Raises what the application raises before it."""
        message = await self._next()
        self.status_code = message["status"]
        self.raw_headers = list(message["headers"])
        self._messages.task_done()

    async def _next(self) -> Message:
        coming = asyncio.ensure_future(self._messages.get())
        try:
            await asyncio.wait({coming, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not (there := coming.done()):
                coming.cancel()
        if not there:
            self._task.result()
            raise RuntimeError("the application ended before its response did")
        return coming.result()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(head)
        more = True
        while more:
            message = await self._next()
            await send(message)
            self._messages.task_done()
            more = message.get("more_body", False)
        await self._task

    async def end(self) -> None:
        """The application is over, one way or another."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
