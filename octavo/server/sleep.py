"""Routes of vLLM's development mode: sleeping, pausing, ending requests, forgetting prompts."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.log import logger
from octavo.server.hub import Hub
from octavo.server.state import State
from octavo.server.wire import convert, read_body, read_object, reply, unless_gone

log = logger(__name__)

_LOOK_S = 0.02
_LEVELS = ("1", "2")
_MODES = ("abort", "wait")
_NO = ("false", "0", "no")


class AbortRequest(msgspec.Struct):
    """Body of POST /abort_requests."""

    request_ids: list[str] | None = None
    """As replies tell them, or as X-Request-Id gave them; None: all."""


def routes(state: State) -> list[Route]:
    """All of them; none unless they are asked for, and then only where not everybody can reach them."""
    settings = state.settings
    if not settings.dev_mode:
        return []
    if not (settings.has_keys or settings.on_loopback or settings.uds):
        log.warning("Development routes stay closed: anybody could use them. Set --api-key to open them.")
        return []

    async def sleep(request: Request) -> Response:
        await read_body(request, settings)
        return await unless_gone(request, _sleep(request, state))

    async def wake_up(request: Request) -> Response:
        state.asleep = False
        log.info("Awake")
        return Response()

    async def is_sleeping(request: Request) -> Response:
        return reply({"is_sleeping": state.asleep})

    async def reset(request: Request) -> Response:
        state.loaded.reset_prefix_cache()
        return Response()

    async def pause(request: Request) -> Response:
        await read_body(request, settings)
        return await unless_gone(request, _pause(request, state))

    async def resume(request: Request) -> Response:
        state.resume()
        log.info("Requests go on")
        return reply({"status": "resumed"})

    async def is_paused(request: Request) -> Response:
        return reply({"is_paused": state.paused})

    async def abort(request: Request) -> Response:
        body = convert(await read_object(request, settings, any_type=True), AbortRequest)
        for name in [None] if body.request_ids is None else body.request_ids:
            state.abort(name)
        return Response()

    return [
        Route("/sleep", sleep, methods=["POST"]),
        Route("/wake_up", wake_up, methods=["POST"]),
        Route("/is_sleeping", is_sleeping, methods=["GET"]),
        Route("/reset_prefix_cache", reset, methods=["POST"]),
        Route("/pause", pause, methods=["POST"]),
        Route("/resume", resume, methods=["POST"]),
        Route("/is_paused", is_paused, methods=["GET"]),
        Route("/abort_requests", abort, methods=["POST"]),
    ]


async def _sleep(request: Request, state: State) -> Response:
    """Refuse new requests, let the running ones finish, then give the KV cache's memory back.

    The weights stay where they are, at level 2 too: reading them again takes longer than waking up should.
    """
    _choice(request, "level", _LEVELS)
    service = state.loaded
    state.asleep = True
    await _idle(state, service)
    service.rest()
    log.info("Asleep: new requests are refused until POST /wake_up; the KV cache's memory is given back")
    return Response()


async def _pause(request: Request, state: State) -> Response:
    """Let new requests wait; end the running ones, or wait for them too (mode ``wait``)."""
    mode = _choice(request, "mode", _MODES)
    service = state.loaded
    state.pause()
    await _idle(state, service, abort=mode == "abort")
    if request.query_params.get("clear_cache", "").lower() not in _NO:
        service.reset_prefix_cache()
    log.info("Paused: new requests wait until POST /resume")
    return reply({"status": "paused"})


async def _idle(state: State, service: Hub, *, abort: bool = False) -> None:
    """Return when the engine has nothing to do and nothing is on its way to it; `abort` ends what has."""
    while True:
        if abort:
            state.abort()
        stats = service.stats()
        if not state.starting + stats.running + stats.waiting:
            return
        await asyncio.sleep(_LOOK_S)


def _choice(request: Request, name: str, choices: tuple[str, ...]) -> str:
    """A parameter of the URL; the first of `choices` without it. Raises BadRequest."""
    given = request.query_params.get(name, choices[0])
    if given not in choices:
        raise BadRequest(f"{name} must be one of {', '.join(choices)}.", param=name)
    return given
