"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.server.hub import NamedAdapter
from octavo.server.openai.replies import ModelCard, ModelList, ModelPermission
from octavo.server.state import State
from octavo.server.wire import reply


def routes(state: State) -> list[Route]:
    """The model list's routes. Ids may hold slashes."""

    def card(name: str) -> ModelCard:
        info = state.service.info
        allowed = ModelPermission(id=f"modelperm-{name}", created=info.created)
        return ModelCard(
            id=name,
            created=info.created,
            root=info.root or name,
            max_model_len=info.max_model_len,
            permission=[allowed],
        )

    def tuned(named: NamedAdapter) -> ModelCard:
        base = named.base or state.names[0]
        found = card(named.adapter.name)
        return msgspec.structs.replace(found, root=named.path, parent=base)

    def adapters() -> list[ModelCard]:
        known = state.service.adapters
        return [tuned(named) for named in known.list()] if known is not None else []

    async def models(request: Request) -> Response:
        return reply(ModelList(data=[card(name) for name in state.names] + adapters()))

    async def model(request: Request) -> Response:
        asked: str = request.path_params["name"]
        for found in adapters():
            if found.id == asked:
                return reply(found)
        first = state.check_model(asked)
        return reply(card(asked if asked in state.names else first))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]
