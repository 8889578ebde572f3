"""Bytes in and bytes out, shared by the doors: bodies, replies, event streams, clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import OctavoError
from octavo.log import logger
from octavo.server.errors import ClientGone, ErrorBody, ErrorInfo, SchemaError, TooLarge, TooSlow, describe
from octavo.server.guard import TENANT
from octavo.server.limits import good_id
from octavo.server.settings import ServerSettings

log = logger(__name__)
T = TypeVar("T")

_WHERE = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")

SSE_DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"
_EVENTS = "text/event-stream; charset=utf-8"


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The whole body. Raises TooLarge as soon as it is certain, TooSlow when nothing comes for a while,
    ClientGone when the client leaves."""
    limit_bytes, patience_s = settings.max_body_bytes, settings.slow_reader_timeout_s or None
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(patience_s) as patience:
            async for part in request.stream():
                size += len(part)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                parts.append(part)
                patience.reschedule(None if patience_s is None else loop.time() + patience_s)
    except ClientDisconnect as gone:
        raise ClientGone from gone
    except TimeoutError:
        raise TooSlow("The request body did not arrive.", hint="Send it without pauses.") from None
    return b"".join(parts)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The request body is larger than this server's limit of {limit_bytes} bytes.")


async def read_object(
    request: Request, settings: ServerSettings, *, any_type: bool = False
) -> dict[str, Any]:
    """The body as a JSON object.

    With `any_type` the Content-Type does not matter (legacy clients send none). Raises SchemaError for
    anything that is no JSON object.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await read_body(request, settings)
    if not any_type and kind and kind != "application/json" and not kind.endswith("+json"):
        raise SchemaError(
            f"Content-Type is {kind[:60]!r}.",
            hint="Send JSON with the header 'Content-Type: application/json'.",
            param="content-type",
        )
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SchemaError(f"The body is not valid JSON: {error}.", param="body") from None
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", param="body") from None
    if not isinstance(value, dict):
        raise SchemaError("The body must be a JSON object.", param="body")
    return value


def convert(value: dict[str, Any], kind: type[T]) -> T:
    """`value` as a struct. Raises SchemaError with `param` ``body.<path>``; whole floats pass as integers."""
    whole = {k: int(v) for k, v in value.items() if type(v) is float and v.is_integer() and abs(v) < 2**63}
    try:
        return msgspec.convert({**value, **whole}, kind)
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", param="body") from None
    except msgspec.ValidationError as error:
        text = str(error)
        where = _WHERE.search(text)
        path = where["path"] if where else ""
        missing = _MISSING.search(text)
        name = f"{path}.{missing['field']}" if missing else path
        param = "body" + re.sub(r"\[(\d+)\]", r".\1", name)
        told = _WHERE.sub("", text)
        raise SchemaError(f"{param}: {told}.", param=param) from None


def reply(value: object, status: int = 200) -> Response:
    """A JSON response of a struct or plain data."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def request_name(request: Request, named: str | None = None) -> str:
    """The client's id of a request (X-Request-Id, then `named`), or a fresh one where those are odd."""
    for given in (request.headers.get("x-request-id"), named):
        if given is not None and good_id(given):
            return given
    return uuid.uuid4().hex


def salted(request: Request, salt: str | None = None) -> str:
    """The prefix-cache salt of a request: holders of different API keys never share blocks."""
    tenant = str(request.scope.get(TENANT, ""))
    return f"{tenant}/{salt or ''}" if tenant else salt or ""


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but cancel it at once when the client goes away. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _cancelled(task, watcher)
        # An error's traceback holds this frame: with the task in it, a body would wait for the collector.
        del task, watcher


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until it is over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sse_error(error: BaseException) -> bytes:
    """How an error looks inside an event stream: one data line, then the end."""
    return b"data: " + msgspec.json.encode(ErrorBody(describe(error))) + b"\n\n" + SSE_DONE


class Stream(Response):
    """A response whose pieces are sent as they come.

    The client's going away closes the generator within one piece, which aborts the work behind it. A piece
    is only asked for once the one before has been taken over by the socket, so that a slow reader holds up
    nobody but itself; one that takes nothing for `slow_reader_timeout_s` is cut. Events that are rare come
    with signs of life between them where the settings want them. `on_close` runs in every case.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        settings: ServerSettings,
        *,
        on_close: Callable[[], Awaitable[None]],
        on_error: Callable[[BaseException], bytes] = sse_error,
        media_type: str = _EVENTS,
        headers: dict[str, str] | None = None,
        keep_alive: bytes = _COMMENT,
    ) -> None:
        self._pieces = pieces
        self._on_close = on_close
        self._on_error = on_error
        self._stall_s = settings.slow_reader_timeout_s
        self._keep_alive_s = settings.sse_keep_alive_interval if media_type == _EVENTS else 0.0
        self._keep_alive = keep_alive
        self._sending = False
        self._since_s = 0.0
        self.status_code = 200
        self.background = None
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": media_type}
        self.init_headers({**quiet, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop early when the client is gone or stalls."""
        tasks: list[asyncio.Future[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._since_s = asyncio.get_running_loop().time()
            work = (self._write(send), gone(receive), self._watch(send))
            tasks.extend(asyncio.ensure_future(part) for part in work)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(*tasks)
            with contextlib.suppress(Exception):
                await self._pieces.aclose()
            await self._on_close()

    async def _write(self, send: Send) -> None:
        """Pieces to the socket; an error becomes the last piece."""
        clock = asyncio.get_running_loop().time
        last = b""
        try:
            async for piece in self._pieces:
                self._sending, self._since_s = True, clock()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._sending, self._since_s = False, clock()
        except Exception as error:
            if self._sending:
                return  # the connection broke: nobody reads an error
            if not isinstance(error, OctavoError):
                log.error("unexpected error in a stream", exc_info=error)
            last = self._on_error(error)
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _watch(self, send: Send) -> None:
        """Return when the client has stalled; between pieces send a sign of life where that is wanted."""
        tick = min([s for s in (self._stall_s / 4, self._keep_alive_s / 2) if s > 0], default=3600.0)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(tick)
            quiet_s = loop.time() - self._since_s
            if self._sending and 0 < self._stall_s < quiet_s:
                log.warning("a client took nothing for %.0f s; its stream was cut", quiet_s)
                return
            if not self._sending and 0 < self._keep_alive_s <= quiet_s:
                self._since_s = loop.time()
                await send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})


Handler = Callable[[Request], Awaitable[Response]]

__all__ = [
    "SSE_DONE",
    "ErrorInfo",
    "Handler",
    "Stream",
    "convert",
    "gone",
    "read_body",
    "read_object",
    "reply",
    "request_name",
    "sse_error",
    "unless_gone",
]
