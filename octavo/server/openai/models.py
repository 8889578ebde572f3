"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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

    async def models(request: Request) -> Response:
        return reply(ModelList(data=[card(name) for name in state.names]))

    async def model(request: Request) -> Response:
        asked: str = request.path_params["name"]
        first = state.check_model(asked)
        return reply(card(asked if asked in state.names else first))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]
