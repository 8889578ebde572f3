"""POST /score and /rerank: how well texts go together, by pairs that are read or the cosine of vectors."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.limits import at_most
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.pooling.bodies import (
    RerankDocument,
    RerankReply,
    RerankRequest,
    RerankResult,
    ScoreData,
    ScoreReply,
    ScoreRequest,
)
from octavo.server.pooling.work import Work
from octavo.server.state import State
from octavo.server.wire import convert, read_object, reply, unless_gone

_NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def routes(state: State) -> list[Route]:
    """Both routes, under every version that clients use."""

    async def score(request: Request) -> Response:
        return await unless_gone(request, _score(request, state))

    async def rerank(request: Request) -> Response:
        return await unless_gone(request, _rerank(request, state))

    return [
        *(Route(f"{version}/score", score, methods=["POST"]) for version in ("", "/v1")),
        *(Route(f"{version}/rerank", rerank, methods=["POST"]) for version in ("", "/v1", "/v2")),
    ]


async def _score(request: Request, state: State) -> Response:
    raw = await read_object(request, state.settings)
    body = convert(raw, ScoreRequest)
    work = Work(request, body, state, "score")
    pairs = _pairs(body)
    at_most("text_2", len(pairs), state.settings.max_prompts, "texts")
    data = [ScoreData(i, score) for i, score in enumerate(await scores(work, pairs))]
    answer = ScoreReply(id=work.id, created=work.created, model=work.model, data=data, usage=work.counts())
    response = reply(answer)
    response.headers.update(warning_headers(misspelt(raw, ScoreRequest)))
    return response


async def _rerank(request: Request, state: State) -> Response:
    raw = await read_object(request, state.settings)
    body = convert(raw, RerankRequest)
    work = Work(request, body, state, "rerank")
    at_most("documents", len(body.documents), state.settings.max_prompts, "documents")
    texts = [_text(document, f"documents.{i}") for i, document in enumerate(body.documents)]
    top_n = body.top_n or 0
    if not texts or top_n < 0:
        name = "top_n" if texts else "documents"
        raise BadRequest(f"{name} is {top_n if texts else 'empty'}.", hint="Send at least one.", param=name)
    query = await _cut(work, body.query, body.max_tokens_per_query, "max_tokens_per_query")
    read = [await _cut(work, text, body.max_tokens_per_doc, "max_tokens_per_doc") for text in texts]
    found = await scores(work, [(query, text) for text in read])
    order = sorted(range(len(texts)), key=lambda i: (-found[i], i))[: top_n or None]
    shown = body.return_documents is not False
    results = [RerankResult(i, found[i], RerankDocument(texts[i]) if shown else None) for i in order]
    response = reply(RerankReply(id=work.id, model=work.model, usage=work.counts(), results=results))
    response.headers.update(warning_headers(misspelt(raw, RerankRequest)))
    return response


async def scores(work: Work, pairs: list[tuple[str, str]]) -> list[float]:
    """A score for each pair. Raises BadRequest for a model with several labels."""
    if work.pooler.kind == "embed":
        params = work.params("embed")
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vectors = await work.run([work.job(params, prompt=text) for text in texts])
        by_text = dict(zip(texts, vectors, strict=True))
        return [_cosine(by_text[one], by_text[other]) for one, other in pairs]
    if not work.pooler.scores:
        raise BadRequest(
            f"This model has {len(work.pooler.labels)} labels: a score needs one.",
            hint="Use /classify.",
            param="model",
        )
    params = work.params("classify")
    found = await work.run([work.job(params, prompt=one, pair=other) for one, other in pairs])
    return [float(one[0]) for one in found]


def _cosine(one: Any, other: Any) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / max(float((a @ a) * (b @ b)) ** 0.5, 1e-24))


def _pairs(body: ScoreRequest) -> list[tuple[str, str]]:
    """The pairs that a body means: one with many, or one by one. Raises BadRequest."""
    for names in _NAMES:
        one, other = (getattr(body, name) for name in names)
        if one is None or other is None:
            continue
        first, second = ([given] if isinstance(given, str) else given for given in (one, other))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second) or not first:
            raise BadRequest(
                f"{len(first)} texts and {len(second)} texts do not pair up.",
                hint="Send one and many, or as many of both.",
                param=names[1],
            )
        return list(zip(first, second, strict=True))
    given = [name for name in msgspec.structs.asdict(body) if getattr(body, name) and name in sum(_NAMES, ())]
    raise BadRequest(
        f"The texts to compare are missing{f': there is only {given[0]}' if given else ''}.",
        hint="Send text_1 and text_2, or queries and documents.",
        param="text_1",
    )


def _text(document: str | dict[str, Any], where: str) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise BadRequest(f"{where} has no text.", hint="Send a string, or an object with text.", param=where)
    return text


async def _cut(work: Work, text: str, limit: int | None, name: str) -> str:
    """The text's first `limit` tokens."""
    if limit is None or limit == 0:
        return text
    if limit < 0:
        raise BadRequest(f"{name} is {limit}.", hint="Give a number above 0.", param=name)
    service = work.state.service
    ids = (await service.tokenize(prompt=text, add_special_tokens=False)).prompt_ids
    return text if len(ids) <= limit else await service.detokenize(ids[:limit])
