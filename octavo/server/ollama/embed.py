"""POST /api/embed and /api/embeddings: texts to vectors, by way of /v1/embeddings."""

from __future__ import annotations

import array
import base64
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest, OctavoError
from octavo.server.guard import TENANT
from octavo.server.inside import post, serves
from octavo.server.ollama.bodies import EmbedReply, EmbedRequest, OneEmbedReply, OneEmbedRequest
from octavo.server.ollama.names import choose
from octavo.server.state import State
from octavo.server.wire import convert, read_object, reply, request_name, unless_gone

_EMBEDDINGS = "/v1/embeddings"


class Told(OctavoError):
    """What /v1/embeddings said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = "BadRequestError"


def routes(state: State) -> list[Route]:
    """The routes of embeddings."""

    async def embed(request: Request) -> Response:
        body = convert(await read_object(request, state.settings, any_type=True), EmbedRequest)
        texts = _texts(body.input) if isinstance(body.input, str) else body.input
        began_s = time.monotonic()
        asked: dict[str, Any] = {"dimensions": body.dimensions}
        if body.truncate is not False:
            asked["truncate_prompt_tokens"] = -1
        vectors, tokens = await unless_gone(request, _vectors(request, state, body.model, texts, asked))
        return reply(
            EmbedReply(
                model=body.model,
                embeddings=vectors,
                total_duration=max(1, int((time.monotonic() - began_s) * 1e9)),
                load_duration=1,
                prompt_eval_count=tokens,
            )
        )

    async def one(request: Request) -> Response:
        body = convert(await read_object(request, state.settings, any_type=True), OneEmbedRequest)
        asked = {"truncate_prompt_tokens": -1}
        vectors, _ = await unless_gone(
            request, _vectors(request, state, body.model, _texts(body.prompt), asked)
        )
        return reply(OneEmbedReply(vectors[0] if vectors else []))

    return [
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", one, methods=["POST"]),
    ]


def _texts(text: str) -> list[str]:
    """One text; an empty one is none, as in Ollama."""
    return [text] if text else []


async def _vectors(
    request: Request, state: State, model: str, texts: list[str], asked: dict[str, Any]
) -> tuple[list[list[float]], int]:
    """(a vector for each text, tokens). Raises OctavoError."""
    name, _ = choose(state, model)
    inner = state.inner
    if inner is None or not serves(getattr(inner, "routes", ()), _EMBEDDINGS):
        raise BadRequest(f"{model[:200]} does not support embeddings.", param="model")
    if not texts:
        return [], 0
    body = {"model": name, "input": texts, "encoding_format": "base64", **asked}
    body = {key: value for key, value in body.items() if value is not None}
    tenant = str(request.scope.get(TENANT, ""))
    status, _, text = await post(inner, _EMBEDDINGS, msgspec.json.encode(body), request_name(request), tenant)
    answer = msgspec.json.decode(text)
    if status != 200:
        raise Told(status, str(answer["error"]["message"]))
    vectors = [_floats(item["embedding"]) for item in answer["data"]]
    return vectors, int(answer["usage"]["prompt_tokens"])


def _floats(packed: str) -> list[float]:
    """A vector of float32 in base64."""
    return array.array("f", base64.b64decode(packed)).tolist()
