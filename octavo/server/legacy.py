"""POST /generate, vLLM's first API: the reply is the prompt and its continuation as one text.

Streams are cumulative JSON objects, each ended by a NUL byte. Besides `prompt` and `stream` the body holds
SamplingParams fields.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.errors import ErrorBody, describe
from octavo.server.limits import at_most, check_ids
from octavo.server.runs import Run, collect
from octavo.server.state import State
from octavo.server.wire import Stream, convert, read_object, reply, request_name, salted, unless_gone
from octavo.types.job import Job
from octavo.types.sampling import SamplingParams

_NOT_SAMPLING = ("output_kind",)
_FIELDS = tuple(name for name in SamplingParams.__struct_fields__ if name not in _NOT_SAMPLING)


class GenerateRequest(msgspec.Struct, kw_only=True):
    """Body of POST /generate, SamplingParams fields aside."""

    prompt: str | list[int]
    stream: bool | None = None


class GenerateReply(msgspec.Struct):
    """Body of the reply and of each piece of a stream: one text per sequence, prompt included."""

    text: list[str]


def routes(state: State) -> list[Route]:
    """The legacy door's route."""

    async def generate(request: Request) -> Response:
        return await unless_gone(request, _answer(request, state))

    return [Route("/generate", generate, methods=["POST"])]


async def _answer(request: Request, state: State) -> Response:
    """The whole life of a request. Raises OctavoError for what cannot be."""
    raw = await read_object(request, state.settings, any_type=True)
    body = convert(raw, GenerateRequest)
    run = await Run.begin(state, [parse(raw, body, state, request_name(request), salted(request))])
    if body.stream:
        return Stream(
            _pieces(run, state),
            state.settings,
            on_close=run.close,
            on_error=_piece_of_error,
            media_type="text/plain; charset=utf-8",
        )
    async with run:
        prompt = await _prompt_text(run, state)
        answers = await collect(run)
    return reply(GenerateReply([prompt + answer.text for answer in answers]))


def parse(raw: dict[str, Any], body: GenerateRequest, state: State, name: str, salt: str) -> Job:
    """The job that a body asks for. Raises BadRequest."""
    settings = state.settings
    if isinstance(body.prompt, list) and not body.prompt:
        raise BadRequest("prompt is empty.", hint="Send text or token ids.", param="prompt")
    if isinstance(body.prompt, list):
        check_ids("prompt", body.prompt)
    fields = {key: value for key, value in raw.items() if key in _FIELDS}
    fields.setdefault("max_tokens", 16)
    if isinstance(fields.get("stop"), list):
        at_most("stop", len(fields["stop"]), settings.max_stop_strings, "strings")
    sampling = state.service.preparer.generation.apply(fields)
    at_most("n", max(sampling.n, sampling.best_of or 0), settings.max_sequences, "sequences")
    return Job(
        id=f"gen-{name}",
        sampling=sampling,
        prompt=body.prompt if isinstance(body.prompt, str) else None,
        prompt_ids=tuple(body.prompt) if isinstance(body.prompt, list) else None,
        salt=salt,
        model=state.names[0],
    )


async def _prompt_text(run: Run, state: State) -> str:
    """The prompt as text, whichever way it came."""
    started = run.started[0]
    if started.prompt is not None:
        return started.prompt
    return await state.service.detokenize(started.prompt_ids)


async def _pieces(run: Run, state: State) -> AsyncGenerator[bytes, None]:
    """Everything so far, again and again."""
    texts = [await _prompt_text(run, state)] * run.choices
    async for index, event in run.events():
        texts[index] += event.text
        if event.text or event.finish is not None:
            yield msgspec.json.encode(GenerateReply(texts)) + b"\0"


def _piece_of_error(error: BaseException) -> bytes:
    """How an error looks inside such a stream."""
    return msgspec.json.encode(ErrorBody(describe(error))) + b"\0"
