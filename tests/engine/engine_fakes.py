"""A model whose next token is a hash of everything before it, read through the block tables.

A wrong block, position, prompt length, newest token or sampler history changes the answer, so that an engine
over this model is right exactly when its tokens are those of :func:`alone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octavo.engine.core import Engine
from octavo.engine.settings import EngineSettings
from octavo.ops.contract import Batch, Limits
from octavo.parallel.inline import InlineExecutor
from octavo.runner.memory import CacheShape
from octavo.runner.runner import Runner
from octavo.types.engine import EngineRequest, SamplingSpec, TokenLogprobs, TokenOut

VOCAB = 53
MASK = (1 << 64) - 1
SECRET = b"a secret of the tests"


def _mix(value: int) -> int:
    """splitmix64's finalizer."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def _state(before: int, token: int, position: int, rope: int) -> int:
    """What the cache holds at a position: depends on all tokens up to it."""
    return _mix(before * 3 + token * 1_000_003 + position * 7_919 + rope * 104_729 & MASK)


def _rope(rope_len: int, switch: int | None) -> int:
    return rope_len if switch is not None and rope_len > switch else 0


def _best(states: np.ndarray) -> int:
    weights = np.arange(1, 2 * len(states), 2, dtype=np.uint64)
    return _mix(int((states * weights).sum(dtype=np.uint64))) % VOCAB


def _pick(best: int, spec: SamplingSpec, prompt: int, output: Sequence[int]) -> int:
    """The fake sampler's rule: the best token, moved by seed and history."""
    return (best + spec.seed * (1 + len(output)) + sum(output) + prompt) % VOCAB


def alone(request: EngineRequest, count: int, switch: int | None = None) -> list[int]:
    """The `count` tokens that follow, without cache, batch or engine."""
    prompt = len(request.prompt)
    states: list[int] = []
    tokens = list(request.prompt)
    for _ in range(count):
        for position in range(len(states), len(tokens)):
            rope = _rope(max(prompt, position + 1), switch)
            states.append(_state(states[-1] if states else 0, tokens[position], position, rope))
        best = _best(np.array(states, np.uint64))
        tokens.append(_pick(best, request.sampling, prompt, tokens[prompt:]))
    return tokens[prompt:]


class HashModel:
    """A Runnable. Each step reads what earlier steps wrote, never what this step writes elsewhere."""

    def __init__(self, blocks: int, block_size: int, switch: int | None = None) -> None:
        self.block_size = block_size
        self.switch = switch
        self.steps: list[Batch] = []
        self.nan_for: set[int] = set()
        """First tokens of sequences whose logits are not numbers."""
        self.allocate_cache(blocks)

    def allocate_cache(self, blocks: int) -> None:
        garbage = np.random.default_rng(0).integers(0, 1 << 63, (blocks, self.block_size))
        self.cache = garbage.astype(np.uint64)
        self.first = np.zeros((blocks, self.block_size), np.int64)

    def forward(self, batch: Batch) -> np.ndarray:
        self.steps.append(batch)
        before = self.cache.copy()
        written: set[tuple[int, int]] = set()
        wanted = {int(token): row for row, token in enumerate(batch.logit_rows)}
        logits = np.zeros((len(wanted), VOCAB), np.float32)
        for s in range(len(batch.context_lens)):
            begin, end = int(batch.seq_starts[s]), int(batch.seq_starts[s + 1])
            context = int(batch.context_lens[s])
            start = context - (end - begin)
            table = batch.block_tables[s]
            places = [(int(table[p // self.block_size]), p % self.block_size) for p in range(context)]
            states = [int(before[place]) for place in places[:start]]
            for p in range(start, context):
                index = begin + p - start
                assert int(batch.positions[index]) == p
                rope = _rope(int(batch.rope_lens[index]), self.switch)
                states.append(_state(states[-1] if states else 0, int(batch.token_ids[index]), p, rope))
                assert places[p] not in written, "two sequences write one slot"
                written.add(places[p])
                self.cache[places[p]] = states[-1]
                if p == 0:
                    self.first[places[0]] = int(batch.token_ids[index])
                if index in wanted:
                    logits[wanted[index], _best(np.array(states, np.uint64))] = 1.0
                    if int(self.first[places[0]]) in self.nan_for:
                        logits[wanted[index]] = np.nan
        return logits


class Choice(NamedTuple):
    token: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    complete: bool = False


class HashSampler:
    """A sampler that follows `_pick` and notices rows that are added twice or removed while empty."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[SamplingSpec, int, list[int]]] = {}

    def add(
        self,
        row: int,
        spec: SamplingSpec,
        prompt: Sequence[int],
        output: Sequence[int],
        grammar: object = None,
    ) -> None:
        assert row not in self.rows
        self.rows[row] = (spec, len(prompt), list(output))

    def remove(self, row: int) -> None:
        del self.rows[row]

    def sample(self, logits: np.ndarray, rows: Sequence[int]) -> list[Choice]:
        assert len(logits) == len(rows)
        choices = []
        for line, row in zip(logits, rows, strict=True):
            if np.isnan(line).any():
                choices.append(Choice(-1, error="The logits contain NaN."))
                continue
            spec, prompt, output = self.rows[row]
            token = _pick(int(line.argmax()), spec, prompt, output)
            output.append(token)
            entry = TokenLogprobs((token,), (0.0,), (1,)) if spec.logprobs is not None else None
            choices.append(Choice(token, entry))
        return choices

    def prompt_logprobs(
        self, logits: np.ndarray, given: Sequence[int], k: int, wanted: np.ndarray | None = None
    ) -> list[TokenLogprobs]:
        assert len(logits) == len(given)
        return [
            TokenLogprobs((int(token),), (float(line.argmax()),), (k,))
            for line, token in zip(logits, given, strict=True)
        ]


class World:
    """An engine over the hash model, its clock, and what came out of it."""

    def __init__(self, blocks: int = 64, block_size: int = 4, switch: int | None = None, **settings) -> None:
        settings.setdefault("max_model_len", 64)
        settings.setdefault("max_num_seqs", 8)
        settings.setdefault("max_num_batched_tokens", 32)
        settings.setdefault("logit_rows", 16)
        self.switch = switch
        self.settings = EngineSettings(vocab=VOCAB, rope_switch_tokens=switch, **settings)
        self.model = HashModel(blocks, block_size, switch)
        self.sampler = HashSampler()
        limits = Limits(
            tokens=self.settings.max_num_batched_tokens,
            sequences=self.settings.max_num_seqs,
            logit_rows=self.settings.logit_rows,
            block_size=block_size,
            max_model_len=self.settings.max_model_len,
        )
        self.limits = limits
        self.executor = InlineExecutor(Runner(self.model, limits, VOCAB, self.sampler))
        cache = CacheShape(blocks, block_size, 1, self.settings.max_model_len)
        self.now = 0.0
        self.engine = Engine(self.executor, cache, self.settings, secret=SECRET, clock=lambda: self.now)
        self.requests: dict[str, EngineRequest] = {}
        self.outs: dict[str, list[TokenOut]] = {}

    @property
    def pool(self):
        return self.engine.scheduler.pool

    def submit(self, name: str, prompt: Sequence[int], **kw) -> EngineRequest:
        request = make(name, prompt, **kw)
        self.engine.submit(request)
        self.requests[name] = request
        self.outs[name] = []
        return request

    def step(self) -> list[TokenOut]:
        outs = self.engine.step()
        for out in outs:
            assert not self.finished(out.id), "news after the finish"
            self.outs[out.id].append(out)
        self.now += 1.0
        if self.model.steps:
            batch = self.model.steps[-1]
            assert batch.tokens <= self.limits.tokens
            assert len(batch.context_lens) <= self.limits.sequences
            assert len(batch.logit_rows) <= self.limits.logit_rows
        return outs

    def drain(self, bound: int = 5000) -> None:
        for _ in range(bound):
            if not self.engine.busy():
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def finished(self, name: str) -> bool:
        return any(out.finish is not None for out in self.outs[name])

    def finish(self, name: str):
        assert self.outs[name][-1].finish is not None
        return self.outs[name][-1].finish

    def tokens(self, name: str) -> list[int]:
        return [token for out in self.outs[name] for token in out.tokens]

    def check(self, name: str) -> None:
        """The tokens so far are the right ones."""
        got = self.tokens(name)
        assert got == alone(self.requests[name], len(got), self.switch)

    def check_idle(self) -> None:
        """Nothing is held any more."""
        assert self.pool.used == 0
        assert self.pool.free == self.pool.blocks
        assert self.engine.admission.waiting == 0
        assert not self.engine.scheduler._promises
        assert not self.engine.scheduler._by_key


def make(name: str, prompt: Sequence[int], *, priority: int = 0, salt: str = "", **sampling) -> EngineRequest:
    """A request; further keywords go to its SamplingSpec."""
    sampling.setdefault("max_tokens", 8)
    spec = SamplingSpec(**sampling)
    return EngineRequest(
        id=name, prompt=tuple(prompt), sampling=spec, arrival_s=0.0, priority=priority, salt=salt
    )
