"""POST /invocations, SageMaker's only route: a body is handed to the route whose body it looks like."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from octavo.errors import BadRequest
from octavo.server.state import State
from octavo.server.wire import Handler, read_body

_ROUTES = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "documents": "/rerank",
    "text_1": "/score",
    "queries": "/score",
    "data_1": "/score",
    "input": "/v1/embeddings",
}
"""The first key that a body has says where it goes."""


def route(state: State, routes: Iterable[Route]) -> Route:
    """The route over all others."""
    handlers: dict[str, Handler] = {r.path: r.endpoint for r in routes if "POST" in (r.methods or ())}
    known = {key: handlers[path] for key, path in _ROUTES.items() if path in handlers}

    async def invoke(request: Request) -> Response:
        body = await read_body(request, state.settings)
        return await _choose(body, known)(_again(request, body))

    return Route("/invocations", invoke, methods=["POST"])


def _choose(body: bytes, known: dict[str, Handler]) -> Handler:
    """Who takes this body. Raises BadRequest."""
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        keys = {}
    for key, handler in known.items():
        if key in keys:
            return handler
    raise BadRequest(f"The body must be a JSON object with one of {', '.join(known)}.", param="body")


def _again(request: Request, body: bytes) -> Request:
    """`request` with its body still to be read."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    receive = request.receive

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return Request(request.scope, replay)
