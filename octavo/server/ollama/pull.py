"""POST /api/pull: the served model is there already; others are downloaded where the server allows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest, CheckpointError, ConfigError, NotFound, OctavoError
from octavo.log import logger
from octavo.server.errors import Forbidden, error_body
from octavo.server.ollama.bodies import Status
from octavo.server.ollama.models import named
from octavo.server.ollama.names import bare, choose
from octavo.server.ollama.render import NDJSON, line
from octavo.server.scopes import Right, demand
from octavo.server.state import State
from octavo.server.wire import Stream, reply

log = logger(__name__)

PATH = "/api/pull"
_TELL_S = 2.0
"""A line this often while a download goes on, so that nobody takes the connection for dead."""


class Busy(OctavoError):
    """Another download is at work."""

    status = 503
    kind = "ServiceUnavailableError"


def routes(state: State) -> list[Route]:
    """The route of pull."""
    one = asyncio.Lock()

    async def pull(request: Request) -> Response:
        body = await named(request, state)
        steps = _steps(request, state, body.model, one)
        first = await anext(steps)  # a refusal is a status of its own, not a line
        if body.stream is False:
            said = [first, *[step async for step in steps]]
            return reply(Status(said[-1]))
        return Stream(
            _lines(first, steps),
            state.settings,
            on_close=steps.aclose,
            on_error=lambda error: error_body(error, PATH) + b"\n",
            media_type=NDJSON,
        )

    return [Route(PATH, pull, methods=["POST"])]


async def _lines(first: str, steps: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
    yield line(Status(first))
    async for step in steps:
        yield line(Status(step))


async def _steps(request: Request, state: State, asked: str, one: asyncio.Lock) -> AsyncGenerator[str, None]:
    """What a pull says, ending with "success". Raises OctavoError."""
    try:
        choose(state, asked)
    except NotFound:
        pass
    else:
        yield "pulling manifest"
        yield "success"
        return
    name = bare(asked)
    if not state.settings.allow_pull:
        raise Forbidden(
            f"{asked[:200]!r} is not the served model, and this server downloads no others.",
            hint="Start it with --allow-pull to let clients fill the hub's cache, or serve that model.",
        )
    demand(request.scope, Right.MANAGEMENT)
    if one.locked():
        raise Busy("Another model is being pulled.", hint="Try again when it is there.")
    async with one:
        yield "pulling manifest"
        work = asyncio.ensure_future(asyncio.to_thread(_download, name))
        while not work.done():
            await asyncio.wait({work}, timeout=_TELL_S)
            if not work.done():
                yield f"pulling {name}"
        work.result()
        log.info("%s: pulled into the hub's cache", name)
    yield f"{name} is in the cache: `octavo serve {name}` serves it"
    yield "success"


def _download(name: str) -> Path:
    """Fetch a hub's model, never a path here. Raises BadRequest with what the hub said."""
    from octavo.weights.hub import check_id, resolve_model

    try:
        check_id(name.partition(":")[0], None)
        return resolve_model(name, quiet=True)
    except (ConfigError, CheckpointError) as error:
        raise BadRequest(error.message, param="model") from error
