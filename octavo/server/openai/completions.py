"""POST /v1/completions: prompts as text or token ids in, their continuations out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_ids
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.openai.common import (
    Head,
    UsageRules,
    check_ceilings,
    head,
    metrics_info,
    refuse_unsupported,
    sampling_params,
    usage_info,
)
from octavo.server.openai.logprobs import CompletionLogprobsMaker, prompt_logprobs
from octavo.server.openai.replies import (
    FINGERPRINT,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionReply,
    PromptLogprobs,
)
from octavo.server.openai.requests import CompletionRequest
from octavo.server.runs import Answer, Run, collect
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.server.wire import (
    SSE_DONE,
    Stream,
    convert,
    read_object,
    reply,
    request_name,
    salted,
    unless_gone,
)
from octavo.types.engine import TokenLogprobs
from octavo.types.job import Event, Job, Started

_ENCODE = msgspec.json.Encoder().encode
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


def routes(state: State) -> list[Route]:
    """The completion door's route."""

    async def completions(request: Request) -> Response:
        return await unless_gone(request, Completion(state).answer(request))

    return [Route("/v1/completions", completions, methods=["POST"])]


class Completion:
    """One request: parsed, run, rendered."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._settings = state.settings

    async def answer(self, request: Request) -> Response:
        """The whole life of a request. Raises OctavoError for what cannot be."""
        raw = await read_object(request, self._settings)
        body = convert(raw, CompletionRequest)
        model, adapter = self._state.choose(body.model)
        self._body = body
        self._head = head("cmpl", request_name(request, body.request_id), model)
        jobs = parse(body, self._state, self._head, salted(request, body.cache_salt))
        jobs = [msgspec.structs.replace(job, adapter=adapter) for job in jobs]
        headers = warning_headers(misspelt(raw, CompletionRequest))
        run = await Run.begin(self._state, jobs)
        if body.stream:
            return Stream(self._chunks(run), self._settings, on_close=run.close, headers=headers)
        async with run:
            echoes = await self._prompt_texts(run)
            response = reply(self._reply(run, await collect(run), echoes))
        response.headers.update(headers)
        return response

    async def _prompt_texts(self, run: Run) -> list[str]:
        """What echo gives back, per prompt; empty strings without echo."""
        if not self._body.echo:
            return [""] * len(run.started)
        detokenize = self._state.service.detokenize
        return [
            started.prompt if started.prompt is not None else await detokenize(started.prompt_ids)
            for started in run.started
        ]

    def _reply(self, run: Run, answers: list[Answer], echoes: list[str]) -> CompletionReply:
        """The body of a reply that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            choice = self._choice(index, run.started[index // run.n], answer)
            choice.text = echoes[index // run.n] + choice.text
            choices.append(choice)
        usage = usage_info(run.usage, self._settings)
        metrics = metrics_info(run, self._body, self._settings)
        top = msgspec.structs.asdict(self._head)
        return CompletionReply(**top, choices=choices, usage=usage, metrics=metrics)

    def _choice(self, index: int, started: Started, answer: Answer) -> CompletionChoice:
        """One answer to the prompt that `started` tells of."""
        body, finish = self._body, answer.finish
        assert finish is not None
        maker = LogprobsMaker(body, self._state, self._settings)
        logprobs: CompletionLogprobs | None = None
        shown: PromptLogprobs | None = None
        prompt_ids = started.prompt_ids
        if body.prompt_logprobs is not None:
            entries = [entry for event in answer.events for entry in event.prompt_logprobs]
            shown = prompt_logprobs(entries, self._state.vocabulary)
        if maker.wanted:
            logprobs = maker.empty()
            for event in answer.events:
                logprobs = maker.add(logprobs, event, prompt_ids)
        return CompletionChoice(
            index=index,
            text=answer.text,
            logprobs=logprobs,
            finish_reason=finish.reason,
            stop_reason=finish.stop_reason,
            token_ids=answer.tokens if body.return_token_ids else None,
            prompt_logprobs=shown,
            prompt_token_ids=list(prompt_ids) if body.return_token_ids else None,
        )

    async def _chunks(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The stream: news of every choice, then usage where it is wanted."""
        rules = UsageRules.of(self._body, self._settings)
        make = ChunkMaker(self._head, self._body, self._state, self._settings, run)
        echoes = await self._prompt_texts(run)
        async for index, event in run.events():
            echo = echoes[index // run.n] if make.fresh(index) else ""
            chunk = make.news(index, event, echo)
            if rules.every:
                chunk.usage = usage_info(run.usage, self._settings)
            yield _line(chunk)
        if rules.last:
            chunk = make.chunk(None)
            chunk.usage = usage_info(run.usage, self._settings)
            chunk.metrics = metrics_info(run, self._body, self._settings) or msgspec.UNSET
            yield _line(chunk)
        yield SSE_DONE


class LogprobsMaker:
    """The logprobs of one choice as the request wants them: with echo the prompt's come first."""

    def __init__(self, body: CompletionRequest, state: State, settings: ServerSettings) -> None:
        self.wanted = body.logprobs is not None and body.logprobs is not False
        asked = body.return_tokens_as_token_ids
        as_ids = settings.return_tokens_as_token_ids if asked is None else asked
        self._echo = bool(body.echo)
        top = -1 if body.logprob_token_ids else _top(body) or 0
        self._maker = CompletionLogprobsMaker(state.vocabulary, top, as_ids)

    @staticmethod
    def empty() -> CompletionLogprobs:
        """Four empty lists."""
        return CompletionLogprobs([], [], [], [])

    def add(self, to: CompletionLogprobs, event: Event, prompt_ids: tuple[int, ...]) -> CompletionLogprobs:
        """`to` with an event's positions appended."""
        entries: list[TokenLogprobs | None] = list(event.prompt_logprobs) if self._echo else []
        entries.extend(event.logprobs)
        new = self._maker.make(entries, prompt_ids[0] if prompt_ids else None)
        to.text_offset += new.text_offset
        to.token_logprobs += new.token_logprobs
        to.tokens += new.tokens
        to.top_logprobs += new.top_logprobs
        return to


class ChunkMaker:
    """Turns events into chunks; cheap, as it runs once per token."""

    def __init__(
        self, top: Head, body: CompletionRequest, state: State, settings: ServerSettings, run: Run
    ) -> None:
        self._head = top
        self._ids = body.return_token_ids
        self._run = run
        self._seen: set[int] = set()
        makers = [LogprobsMaker(body, state, settings) for _ in range(run.choices)]
        self._makers = makers if makers[0].wanted else []

    def fresh(self, index: int) -> bool:
        """Whether nothing was said of this choice so far."""
        return index not in self._seen

    def chunk(self, choice: CompletionChoice | None) -> CompletionChunk:
        """A chunk of one choice or of none."""
        top = self._head
        choices = [] if choice is None else [choice]
        return CompletionChunk(id=top.id, created=top.created, model=top.model, choices=choices)

    def news(self, index: int, event: Event, echo: str) -> CompletionChunk:
        """The chunk of one event; `echo` is the prompt where it has to come first."""
        choice = CompletionChoice(index=index, text=echo + event.text)
        prompt_ids = self._run.started[index // self._run.n].prompt_ids
        if self._ids:
            choice.token_ids = list(event.tokens)
            if self.fresh(index):
                choice.prompt_token_ids = list(prompt_ids)
        if self._makers and (event.logprobs or event.prompt_logprobs):
            maker = self._makers[index]
            choice.logprobs = maker.add(maker.empty(), event, prompt_ids)
        self._seen.add(index)
        chunk = self.chunk(choice)
        if event.finish is not None:
            choice.finish_reason = event.finish.reason
            choice.stop_reason = event.finish.stop_reason
            chunk.system_fingerprint = FINGERPRINT
        return chunk


def _line(chunk: CompletionChunk) -> bytes:
    """One data line."""
    return b"data: " + _ENCODE(chunk) + b"\n\n"


def parse(body: CompletionRequest, state: State, head: Head, salt: str) -> list[Job]:
    """One job per prompt. Raises BadRequest."""
    settings = state.settings
    refuse_unsupported(body)
    prompts = split_prompts(body.prompt, settings)
    check_ceilings(body, settings, len(prompts))
    _check_options(body)
    top = _top(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompt_only = max_tokens == 0 and bool(body.echo)
    sampling = sampling_params(
        body,
        state,
        max_tokens=None if prompt_only else max_tokens,
        logprobs=top,
        prompt_logprobs=top if body.echo and body.prompt_logprobs is None else body.prompt_logprobs,
    )
    if prompt_only:
        sampling.max_tokens = None  # the job's default of 0 decides, not the model's
    return [
        Job(
            id=head.id,
            sampling=sampling,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
            add_special_tokens=body.add_special_tokens is not False,
            default_max_tokens=0 if prompt_only else None,
            truncation_side=body.truncation_side,
            priority=body.priority or 0,
            salt=salt,
            model=head.model,
        )
        for prompt in prompts
    ]


def _top(body: CompletionRequest) -> int | None:
    """`logprobs` as a count; true is 1."""
    if body.logprobs is None or body.logprobs is False:
        return None
    return int(body.logprobs)


def split_prompts(prompt: Any, settings: ServerSettings) -> list[str | tuple[int, ...]]:
    """Text, list of texts, token ids or list of token id lists as single prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise BadRequest("prompt is missing or empty.", hint="Send text or token ids.", param="prompt")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt)]
    at_most("prompt", len(prompt), settings.max_prompts, "prompts")
    if isinstance(prompt[0], str):
        if not all(isinstance(p, str) for p in prompt):
            raise _mixed()
        return list(prompt)
    if not all(isinstance(p, list) for p in prompt):
        raise _mixed()
    return [_token_ids(p) for p in prompt]


def _token_ids(ids: list[Any]) -> tuple[int, ...]:
    """Token ids within int32; whether the vocabulary has them is checked where it is known."""
    if not ids:
        raise BadRequest("prompt is empty.", hint="Send at least one token id.", param="prompt")
    for token in ids:
        if type(token) is not int:
            raise _mixed()
    check_ids("prompt", ids)
    return tuple(ids)


def _mixed() -> BadRequest:
    return BadRequest(
        "prompt must be text, a list of texts, a list of token ids, or a list of lists of token ids.",
        param="prompt",
    )


def _check_options(body: CompletionRequest) -> None:
    """Rules between fields."""
    if body.logprob_token_ids and _top(body) is None:
        raise BadRequest("logprob_token_ids needs logprobs.", param="logprob_token_ids")
    if body.logprob_token_ids and body.echo and body.max_tokens == 0:
        raise BadRequest(
            "logprob_token_ids tells of tokens of the answer: none is asked for.", param="logprob_token_ids"
        )
    if body.stream and body.prompt_logprobs is not None and body.prompt_logprobs != 0:
        raise BadRequest("prompt_logprobs cannot be streamed.", param="prompt_logprobs")
