"""POST /api/embed and /api/embeddings: texts to vectors, where the served model makes some."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.ollama.models import named
from octavo.server.ollama.names import choose
from octavo.server.state import State


def routes(state: State) -> list[Route]:
    """The routes of embeddings."""

    async def embed(request: Request) -> Response:
        body = await named(request, state)
        choose(state, body.model)
        raise BadRequest(f"{body.model[:200]} does not support embeddings.", param="model")

    return [
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embed, methods=["POST"]),
    ]
