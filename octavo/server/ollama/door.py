"""All routes below /api."""

from __future__ import annotations

from starlette.routing import Route

from octavo.server.ollama import chat, embed, generate, models, pull
from octavo.server.state import State


def routes(state: State) -> list[Route]:
    """Every route of Ollama's API."""
    return [route for part in (generate, chat, embed, pull, models) for route in part.routes(state)]
