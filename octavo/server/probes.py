"""Is it alive, is it ready, what is it: /health, /ping, /version, /load."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import octavo
from octavo.server.errors import ErrorInfo, respond_info
from octavo.server.state import State
from octavo.server.wire import reply


def routes(state: State) -> list[Route]:
    """The probes' routes."""

    async def health(request: Request) -> Response:
        """200 with no body when a request would be accepted now, else 503."""
        if state.ready:
            return Response(status_code=200)
        return respond_info(ErrorInfo("The server is not ready.", "ServiceUnavailableError", None, 503))

    async def version(request: Request) -> Response:
        return reply({"version": octavo.__version__})

    async def load(request: Request) -> Response:
        return reply({"server_load": state.active})

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ping", health, methods=["GET", "POST"]),
        Route("/version", version, methods=["GET"]),
        Route("/load", load, methods=["GET"]),
    ]
