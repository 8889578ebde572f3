"""Beam search over an engine that knows nothing of it: each step asks for one token after every hypothesis.

The prompts of a step differ from those of the step before by a token, so the prefix cache holds nearly all of
them. Hypotheses are ranked by the model's own log-probabilities: nothing is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from octavo.errors import BadRequest, PromptTooLong
from octavo.pipeline.detokenizer import make_detokenizer
from octavo.pipeline.stop import EndTokens
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import ChatOptions, Event, Job, Started
from octavo.types.sampling import SamplingParams


class Hypothesis(msgspec.Struct, frozen=True):
    """One way to go on after the prompt."""

    tokens: tuple[int, ...] = ()
    positions: tuple[TokenLogprobs, ...] = ()
    """One for each token, the token itself first."""
    logprob: float = 0.0
    end: int | None = None
    """The end token that finished it; not in `tokens` unless that was asked for."""


class Beam:
    """The search for one prompt: `tails` are to be continued, `advance` takes in how; `best` at the end."""

    def __init__(
        self,
        prompt_tokens: int,
        width: int,
        max_tokens: int,
        ends: frozenset[int],
        *,
        length_penalty: float = 1.0,
        keep_end: bool = False,
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._width = width
        self._left = max_tokens
        self._ends = ends
        self._penalty = length_penalty
        self._keep_end = keep_end
        self._open = [Hypothesis()]
        self._ended: list[Hypothesis] = []

    @property
    def tails(self) -> list[tuple[int, ...]]:
        """The tokens after the prompt of every hypothesis that goes on; none when the search is over."""
        return [one.tokens for one in self._open] if self._left > 0 else []

    def advance(self, results: Sequence[TokenLogprobs]) -> None:
        """`results`: for each of `tails` the likeliest next tokens (ids may repeat)."""
        self._left -= 1
        grown: list[Hypothesis] = []
        for one, result in zip(self._open, results, strict=True):
            for token, (value, rank) in _candidates(result, 2 * self._width).items():
                position = _chosen(result, token, value, rank)
                logprob = one.logprob + value
                if token in self._ends:
                    kept = self._keep_end
                    tokens = (*one.tokens, token) if kept else one.tokens
                    positions = (*one.positions, position) if kept else one.positions
                    self._ended.append(Hypothesis(tokens, positions, logprob, token))
                else:
                    grown.append(Hypothesis((*one.tokens, token), (*one.positions, position), logprob))
        grown.sort(key=self._score, reverse=True)
        self._open = grown[: self._width]
        if not self._open:
            self._left = 0

    def best(self) -> list[Hypothesis]:
        """The likeliest hypotheses, best first, at most as many as the search is wide."""
        return sorted([*self._ended, *self._open], key=self._score, reverse=True)[: self._width]

    def _score(self, one: Hypothesis) -> float:
        """vLLM's: the sum of log-probabilities over the length of prompt and answer without the end token."""
        length = self._prompt_tokens + len(one.tokens) - (self._keep_end and one.end is not None)
        return float(one.logprob / float(max(length, 1)) ** self._penalty)


def _candidates(result: TokenLogprobs, count: int) -> dict[int, tuple[float, int]]:
    """Token to (log-probability, rank), the `count` likeliest."""
    found: dict[int, tuple[float, int]] = {}
    for token, value, rank in zip(result.ids, result.values, result.ranks, strict=True):
        found.setdefault(token, (value, rank))
    ordered = sorted(found.items(), key=lambda item: item[1][1])
    return dict(ordered[:count])


def _chosen(result: TokenLogprobs, token: int, value: float, rank: int) -> TokenLogprobs:
    """A position with `token` as the chosen one, then the likeliest."""
    rest = slice(1, None)  # the first is what the engine drew
    return TokenLogprobs(
        (token, *result.ids[rest]), (value, *result.values[rest]), (rank, *result.ranks[rest])
    )


def check(sampling: SamplingParams, max_logprobs: int) -> None:
    """Raises BadRequest for what cannot be searched for. Temperature and penalties have no effect."""
    for name in _NOT_TOGETHER:
        if getattr(sampling, name) not in (None, 0, [], {}):
            raise BadRequest(f"use_beam_search goes without {name}.", hint="Leave it out.", param=name)
    needed = 2 * sampling.n
    if 0 <= max_logprobs < needed:
        raise BadRequest(
            f"A beam of n={sampling.n} looks at {needed} log-probabilities; the limit is {max_logprobs}.",
            hint=f"Use n={max_logprobs // 2}, or start with --max-logprobs {needed}.",
            param="n",
        )


_NOT_TOGETHER = (
    *("best_of", "stop", "stop_token_ids", "structured_outputs", "allowed_token_ids", "bad_words"),
    *("logit_bias", "min_tokens", "prompt_logprobs", "truncate_prompt_tokens", "thinking_token_budget"),
    *("repetition_detection", "logprob_token_ids", "prompt_logprob_token_ids", "logits_processors"),
)


def step_params(width: int, logprobs: int | None = None) -> SamplingParams:
    """One greedy token with enough log-probabilities for `width` hypotheses."""
    most = max(2 * width, logprobs or 0)
    return SamplingParams(max_tokens=1, temperature=0.0, logprobs=most, ignore_eos=True, detokenize=False)


def ends_of(ends: EndTokens, sampling: SamplingParams) -> frozenset[int]:
    """The tokens that finish a hypothesis."""
    if sampling.ignore_eos:
        return frozenset()
    return frozenset(i for i in (ends.primary, *ends.others) if i is not None)


class Searched(Protocol):
    """The part of the service that a search needs."""

    async def submit(self, job: Job) -> Any: ...

    async def tokenize(
        self,
        *,
        prompt: str | None = None,
        messages: Sequence[dict[str, object]] | None = None,
        chat: ChatOptions | None = None,
        add_special_tokens: bool = True,
    ) -> Started: ...

    async def detokenize(self, ids: Sequence[int]) -> str: ...


class _Stopped(Exception):
    """A step ended in an error or an abort."""

    def __init__(self, finish: Finish) -> None:
        super().__init__(finish.reason)
        self.finish = finish


async def search(
    service: Searched, job: Job, ends: EndTokens, limits: Mapping[str, int]
) -> AsyncGenerator[Started | Event, None]:
    """A job with `use_beam_search` as Started and then one Event for each of its n hypotheses, at the end.

    `limits`: `max_model_len` and `max_logprobs`. Raises BadRequest and PromptTooLong before Started.
    """
    sampling = job.sampling
    check(sampling, limits["max_logprobs"])
    started = await _started(service, job)
    room = limits["max_model_len"] - len(started.prompt_ids)
    if room < 1:
        raise PromptTooLong(len(started.prompt_ids), limits["max_model_len"] - 1)
    wanted = sampling.max_tokens if sampling.max_tokens is not None else job.default_max_tokens
    beam = Beam(
        len(started.prompt_ids),
        sampling.n,
        room if wanted is None else min(room, wanted),
        ends_of(ends, sampling),
        length_penalty=sampling.length_penalty,
        keep_end=sampling.include_stop_str_in_output,
    )
    params = step_params(sampling.n, sampling.logprobs)
    told = False
    try:
        while tails := beam.tails:
            jobs = [_step(job, f"{len(tail)}-{i}", started, tail, params) for i, tail in enumerate(tails)]
            beam.advance(await _together(service, jobs))
            if not told:
                told = True
                yield started
    except _Stopped as stopped:
        if not told:
            yield started
        for index in range(sampling.n):
            yield Event(index=index, finish=stopped.finish)
        return
    if not told:
        yield started
    best = beam.best()
    for index in range(sampling.n):
        one = best[index] if index < len(best) else Hypothesis(end=-1)
        yield Event(
            index=index,
            text=await text_of(service, started.prompt_ids, one.tokens, sampling),
            tokens=one.tokens,
            logprobs=tuple(_cut(p, sampling.logprobs) for p in one.positions)
            if sampling.logprobs is not None
            else (),
            finish=Finish("length" if one.end is None else "stop"),
        )


async def _started(service: Searched, job: Job) -> Started:
    """The prompt of a job."""
    if job.prompt_ids is not None:
        return Started(prompt=job.prompt, prompt_ids=job.prompt_ids)
    if job.messages is not None:
        return await service.tokenize(messages=job.messages, chat=job.chat)
    return await service.tokenize(prompt=job.prompt, add_special_tokens=job.add_special_tokens)


def _step(job: Job, step: str, started: Started, tail: tuple[int, ...], params: SamplingParams) -> Job:
    return Job(
        id=f"{job.id}-{step}",
        sampling=params,
        prompt_ids=(*started.prompt_ids, *tail),
        priority=job.priority,
        salt=job.salt,
        model=job.model,
        adapter=job.adapter,
        raw_logprobs=True,
    )


async def _together(service: Searched, jobs: Sequence[Job]) -> list[TokenLogprobs]:
    """One position of every job; whatever ends it early ends all of them."""
    tasks = [asyncio.ensure_future(_one(service, job)) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(service: Searched, job: Job) -> TokenLogprobs:
    stream = await service.submit(job)
    async with contextlib.aclosing(stream):
        found: TokenLogprobs | None = None
        async for event in stream:
            if not isinstance(event, Event):
                continue
            if event.finish is not None and event.finish.reason in ("error", "abort"):
                raise _Stopped(event.finish)
            if event.logprobs:
                found = event.logprobs[0]
    if found is None:
        raise _Stopped(Finish("error", error="The engine gave no log-probabilities."))
    return found


async def text_of(
    service: Any, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams
) -> str:
    """The text of an answer."""
    tokenizer = service.tokenizer
    if tokenizer is None or not sampling.detokenize:
        return ""
    if not isinstance(tokenizer, Tokenizer):
        return str(await service.detokenize(tokens))
    reader = make_detokenizer(
        tokenizer,
        prompt,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=sampling.spaces_between_special_tokens,
    )
    return "".join(reader.push(token) for token in tokens) + reader.flush()


def _cut(position: TokenLogprobs, count: int) -> TokenLogprobs:
    """A position with as many of the likeliest as were asked for."""
    keep = len(position.ids) if count < 0 else count + 1
    return TokenLogprobs(position.ids[:keep], position.values[:keep], position.ranks[:keep])
