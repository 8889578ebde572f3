"""POST /generative_scoring: how likely a model that generates finds one answer of several, for each item."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_ids, check_order, named_as
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.openai.common import head, usage_info
from octavo.server.openai.replies import UsageInfo
from octavo.server.runs import Run, collect
from octavo.server.state import State
from octavo.server.wire import convert, read_object, reply, request_name, salted, unless_gone
from octavo.types.job import Job
from octavo.types.sampling import MAX_LOGPROB_IDS, SamplingParams


class ScoringRequest(msgspec.Struct, kw_only=True):
    """Body of POST /generative_scoring; texts, or token ids in their place."""

    query: str | list[int]
    items: list[str | list[int]]
    label_token_ids: list[int]
    """The answers; the score is that of the first."""
    model: str | None = None
    apply_softmax: bool | None = None
    """True, as without it: of the labels alone; false: of the whole vocabulary."""
    item_first: bool | None = None
    add_special_tokens: bool | None = None
    """Those of the query; items get none."""
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    user: str | None = None


class ItemScore(msgspec.Struct, kw_only=True):
    """One item's."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoringReply(msgspec.Struct, kw_only=True):
    """Body of the reply, in the order of the items."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ItemScore]
    usage: UsageInfo


def routes(state: State) -> list[Route]:
    """The one route."""

    async def scoring(request: Request) -> Response:
        return await unless_gone(request, _answer(request, state))

    return [Route("/generative_scoring", scoring, methods=["POST"])]


async def _answer(request: Request, state: State) -> Response:
    """The whole life of a request. Raises OctavoError for what cannot be."""
    raw = await read_object(request, state.settings)
    body = convert(raw, ScoringRequest)
    _check(body, state)
    model, adapter = state.choose(body.model)
    top = head("generative-scoring", request_name(request, body.request_id), model)
    job = Job(
        id=top.id,
        sampling=SamplingParams(
            max_tokens=1, temperature=0, ignore_eos=True, logprob_token_ids=body.label_token_ids
        ),
        priority=body.priority or 0,
        salt=salted(request, body.cache_salt),
        model=model,
        adapter=adapter,
    )
    prompts = await _prompts(body, state)
    with named_as("label_token_ids", "logprob_token_ids"):
        run = await Run.begin(state, [msgspec.structs.replace(job, prompt_ids=ids) for ids in prompts])
    async with run:
        answers = await collect(run)
    found = [answer.events[0].logprobs[0] for answer in answers]
    scores = [score(body, dict(zip(entry.ids, entry.values, strict=True))) for entry in found]
    made = ScoringReply(
        **msgspec.structs.asdict(top),
        data=[ItemScore(index=i, score=value) for i, value in enumerate(scores)],
        usage=usage_info(run.usage, state.settings),
    )
    response = reply(made)
    response.headers.update(warning_headers(misspelt(raw, ScoringRequest)))
    return response


def _check(body: ScoringRequest, state: State) -> None:
    """What can be said before there are tokens. Raises BadRequest."""
    mode = state.service.info.logprobs_mode
    if mode != "raw_logprobs":
        raise BadRequest(
            f"This server's logprobs are {mode}, which are no probabilities of the model's own.",
            hint="Start it without --logprobs-mode.",
        )
    for name in ("items", "label_token_ids"):
        if not getattr(body, name):
            raise BadRequest(f"{name} is empty.", param=name)
    at_most("items", len(body.items), state.settings.max_prompts, "items")
    at_most("label_token_ids", len(body.label_token_ids), MAX_LOGPROB_IDS, "ids")
    check_ids("label_token_ids", body.label_token_ids)
    check_order(body.priority, body.cache_salt)


async def _prompts(body: ScoringRequest, state: State) -> list[tuple[int, ...]]:
    """The token ids of query and item for each item. Raises BadRequest."""

    async def ids(name: str, given: str | list[int], special: bool) -> tuple[int, ...]:
        if not isinstance(given, str):
            check_ids(name, given)
            return tuple(given)
        return (await state.service.tokenize(prompt=given, add_special_tokens=special)).prompt_ids

    query = await ids("query", body.query, body.add_special_tokens is not False)
    items = [await ids(f"items.{i}", item, False) for i, item in enumerate(body.items)]
    return [item + query if body.item_first else query + item for item in items]


def score(body: ScoringRequest, logprobs: dict[int, float]) -> float:
    """The probability of the first label, among the labels or among all tokens."""
    wanted = logprobs[body.label_token_ids[0]]
    if body.apply_softmax is False:
        return math.exp(wanted)
    highest = max(logprobs[label] for label in body.label_token_ids)
    if highest == -math.inf:
        return 1 / len(set(body.label_token_ids))
    whole = sum(math.exp(logprobs[label] - highest) for label in dict.fromkeys(body.label_token_ids))
    return math.exp(wanted - highest) / whole
