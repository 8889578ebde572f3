"""Beam search against a plain one over a table, through a server's routes, and with the bundled model."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from octavo.errors import BadRequest, PromptTooLong
from octavo.pipeline.beam import Beam, check, search
from octavo.pipeline.stop import EndTokens
from octavo.types.beam import BeamSearchParams
from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import Event, Job, Started
from octavo.types.sampling import SamplingParams

VOCAB = 5
END = 4


def row(tail: tuple[int, ...]) -> list[float]:
    """Log-probabilities after `tail`: any table will do, as long as no two are equal."""
    state = sum((i + 2) * (token + 1) for i, token in enumerate(tail))
    raw = [math.sin(7.3 * state + 3.1 * token) * 2 for token in range(VOCAB)]
    total = math.log(sum(map(math.exp, raw)))
    return [value - total for value in raw]


def result(tail: tuple[int, ...], count: int) -> TokenLogprobs:
    """What the engine says: the greedy token, then the likeliest."""
    values = row(tail)
    order = sorted(range(VOCAB), key=lambda token: -values[token])[:count]
    ids = (order[0], *order)
    return TokenLogprobs(ids, tuple(values[i] for i in ids), (1, *range(1, len(order) + 1)))


def run(width: int, steps: int, penalty: float = 1.0, *, keep_end: bool = False) -> Beam:
    beam = Beam(3, width, steps, frozenset({END}), length_penalty=penalty, keep_end=keep_end)
    while beam.tails:
        beam.advance([result(tail, 2 * width) for tail in beam.tails])
    return beam


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all(penalty: float) -> None:
    steps = 3
    scored = []
    for length in range(steps + 1):
        for tokens in itertools.product(range(VOCAB - 1), repeat=length):
            logprob = sum(row(tokens[:i])[token] for i, token in enumerate(tokens))
            if length == steps:
                scored.append((logprob / (3 + length) ** penalty, tokens))
            else:
                scored.append(((logprob + row(tokens)[END]) / (3 + length) ** penalty, tokens))
    expected = sorted(scored, reverse=True)[:4]
    found = run(VOCAB**steps, steps, penalty).best()[:4]
    assert [one.tokens for one in found] == [tokens for _, tokens in expected]


def test_a_beam_of_one_is_greedy() -> None:
    best = run(1, 4).best()[0]
    tail: tuple[int, ...] = ()
    while len(tail) < 4:
        values = row(tail)
        token = values.index(max(values))
        if token == END:
            break
        tail = (*tail, token)
    open_or_ended = [best.tokens[: len(tail)] == tail[: len(best.tokens)]]
    assert all(open_or_ended)
    assert len(best.positions) == len(best.tokens)
    assert all(p.ids[0] == token for p, token in zip(best.positions, best.tokens, strict=True))


def test_the_end_token_stays_when_asked() -> None:
    kept = [one for one in run(16, 2, 0.0, keep_end=True).best() if one.end is not None]
    assert kept
    assert all(one.tokens[-1] == END and len(one.positions) == len(one.tokens) for one in kept)


def test_what_does_not_go_together() -> None:
    params = SamplingParams(n=3, use_beam_search=True, temperature=0)
    check(params, 6)
    check(params, -1)
    with pytest.raises(BadRequest, match="max-logprobs 6"):
        check(params, 5)
    for field in ({"stop": ["a"]}, {"bad_words": ["a"]}, {"min_tokens": 2}, {"logit_bias": {1: 1.0}}):
        with pytest.raises(BadRequest, match=next(iter(field))):
            check(SamplingParams(use_beam_search=True, max_tokens=5, **field), -1)


class Table:
    """A service that answers steps from the table."""

    tokenizer = None

    def __init__(self, fails_at: int = 99) -> None:
        self.open = 0
        self.fails_at = fails_at

    async def tokenize(self, **_: Any) -> Started:
        return Started(prompt="P", prompt_ids=(9, 9, 9))

    async def submit(self, job: Job) -> AsyncGenerator[Started | Event, None]:
        return self._events(job)

    async def _events(self, job: Job) -> AsyncGenerator[Started | Event, None]:
        self.open += 1
        try:
            assert job.prompt_ids is not None
            tail = job.prompt_ids[3:]
            yield Started(prompt=None, prompt_ids=job.prompt_ids)
            await asyncio.sleep(0)
            if len(tail) == self.fails_at:
                yield Event(index=0, finish=Finish("abort"))
                return
            entry = result(tail, job.sampling.logprobs or 0)
            yield Event(index=0, tokens=entry.ids[:1], logprobs=(entry,), finish=Finish("length"))
        finally:
            self.open -= 1


def events(table: Table, context: int = 100, **fields: Any) -> list[Started | Event]:
    async def go() -> list[Started | Event]:
        sampling = SamplingParams(n=3, use_beam_search=True, max_tokens=4, temperature=0, **fields)
        job = Job(id="j", sampling=sampling, prompt="P")
        limits = {"max_model_len": context, "max_logprobs": 20}
        return [event async for event in search(table, job, EndTokens(END), limits)]

    found = asyncio.run(go())
    assert table.open == 0
    return found


def test_a_search_looks_like_a_job() -> None:
    started, *news = events(Table(), logprobs=2)
    assert isinstance(started, Started)
    best = run(3, 4).best()
    assert [e.tokens for e in news if isinstance(e, Event)] == [one.tokens for one in best]
    for event, one in zip(news, best, strict=True):
        assert isinstance(event, Event)
        assert event.finish is not None
        assert event.finish.reason == ("length" if one.end is None else "stop")
        assert all(len(position.ids) == 3 for position in event.logprobs)


def test_the_context_bounds_the_search() -> None:
    _, *news = events(Table(), 4, ignore_eos=True)
    assert [len(e.tokens) for e in news if isinstance(e, Event)] == [1, 1, 1]
    with pytest.raises(PromptTooLong, match="3 tokens, but at most 2"):
        events(Table(), 3)


def test_an_abort_ends_every_choice() -> None:
    for at in (0, 2):
        _, *news = events(Table(fails_at=at))
        assert [e.finish.reason for e in news if isinstance(e, Event) and e.finish] == ["abort"] * 3


def test_the_bundled_model() -> None:
    from octavo.llm import LLM

    llm = LLM(max_model_len=256, quiet=True)
    prompt = "Why is the sky"
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    [greedy] = llm.generate(prompt, params, use_tqdm=False)
    [one] = llm.beam_search(prompt, BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))
    ids = list(greedy.prompt_token_ids or ())
    assert one.sequences[0].tokens == ids + greedy.outputs[0].token_ids
    assert one.sequences[0].cum_logprob == pytest.approx(greedy.outputs[0].cumulative_logprob, rel=1e-5)
    assert one.sequences[0].text == llm.get_tokenizer().decode(one.sequences[0].tokens)
    both = llm.beam_search([prompt, {"prompt": "A"}], BeamSearchParams(beam_width=4, max_tokens=8))
    assert [len(output.sequences) for output in both] == [4, 4]
    sums = [sequence.cum_logprob for sequence in both[0].sequences]
    assert all(value <= 0 for value in sums)
    assert len({tuple(sequence.tokens) for sequence in both[0].sequences}) == 4
    with pytest.raises(BadRequest, match=r"LLM\.beam_search"):
        llm.generate(prompt, SamplingParams(use_beam_search=True))
