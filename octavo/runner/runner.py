"""The runner: plan to arrays, arrays to logits, logits to tokens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Limits, Runnable
from octavo.runner.arrays import Arrays, Rows
from octavo.types.engine import NewSequence, Sampled, SamplingSpec, StepPlan, StepResult, TokenLogprobs
from octavo.types.grammar import Grammar
from octavo.types.lora import Adapter

Logits = NDArray[np.float32]


class Choice(Protocol):
    """What the sampler gives for one row."""

    @property
    def token(self) -> int:
        """The token, of no meaning beside an error."""

    @property
    def logprobs(self) -> TokenLogprobs | None: ...

    @property
    def error(self) -> str | None:
        """Why the row cannot be sampled (logits that are not numbers, no token allowed)."""

    @property
    def complete(self) -> bool:
        """Whether the row's grammar allows nothing after this token."""


class RowSampler(Protocol):
    """What the runner needs of a sampler: see runner.sampling.Sampler. A row is a sequence's key."""

    def add(
        self,
        row: int,
        spec: SamplingSpec,
        prompt: Sequence[int],
        output: Sequence[int],
        grammar: Grammar | None,
        /,
    ) -> None: ...

    def remove(self, row: int, /) -> None: ...

    def sample(self, logits: Logits, rows: Sequence[int], stats: Any = None, /) -> Sequence[Choice]:
        """logits [n, vocab] -> one choice each; the token joins the row's history. `stats`: see
        NativeRunnable.row_stats.
        """

    def prompt_logprobs(
        self, logits: Logits, given: Sequence[int], k: int, wanted: NDArray[np.int32] | None = None, /
    ) -> list[TokenLogprobs]: ...


class AdapterPlaces(Protocol):
    """Where adapters stand: see lora.store.AdapterStore."""

    def place(self, wanted: Iterable[Adapter], /) -> dict[str, int | str]:
        """An adapter's key -> its place in the model, or why it cannot be had."""


class Runner:
    """Runs plans on one bound model; keeps what the engine said of a sequence until its key has ended."""

    def __init__(
        self,
        model: Runnable,
        limits: Limits,
        vocab: int,
        sampler: RowSampler | None = None,
        places: AdapterPlaces | None = None,
    ) -> None:
        """`vocab`: width of the logits. `sampler`: None makes the native one. `places`: None where no request
        brings an adapter.
        """
        self._model = model
        self._rows = Rows(limits)
        self._sampler = _native_sampler(vocab, limits.sequences) if sampler is None else sampler
        self._known: set[int] = set()
        self._places = places
        self._adapters: dict[int, Adapter] = {}
        """Those of the running sequences, by their keys."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. After an exception the sequences of the plan must be ended by their keys."""
        begun = time.perf_counter()
        for key in plan.ended:
            self._forget(key)
        for new in plan.new:
            self._add(new)
        if not plan.work:
            return StepResult(())
        arrays = self._arrays(plan)
        slots, failed = self._place_adapters(plan)
        made = time.perf_counter()
        batch = arrays.batch if slots is None else replace(arrays.batch, adapters=slots)
        logits = self._model.forward(batch)
        computed = time.perf_counter()
        sampled = self._answers(plan, arrays, logits)
        if failed:
            sampled = tuple(
                Sampled(s.key, (), error=failed.get(s.key)) if s.key in failed else s for s in sampled
            )
        done = time.perf_counter()
        return StepResult(sampled, made - begun, computed - made, done - computed)

    def _arrays(self, plan: StepPlan) -> Arrays:
        return self._rows.arrays(plan)

    def _place_adapters(self, plan: StepPlan) -> tuple[NDArray[np.int32] | None, dict[int, str]]:
        """(the place of each work's adapter, or None where there is none at all; errors by key)."""
        if self._places is None:
            return None, {}
        own = [self._adapters.get(item.key) for item in plan.work]
        found = self._places.place([adapter for adapter in own if adapter])
        if not found:
            return None, {}
        answers = [found[adapter.key] if adapter else -1 for adapter in own]
        failed = {
            item.key: answer
            for item, answer in zip(plan.work, answers, strict=True)
            if isinstance(answer, str)
        }
        slots = np.array([-1 if isinstance(answer, str) else answer for answer in answers], np.int32)
        return (slots if slots.max() >= 0 else None), failed

    def _forget(self, key: int) -> None:
        self._adapters.pop(key, None)
        if key in self._known:
            self._known.remove(key)
            self._sampler.remove(key)

    def _add(self, new: NewSequence) -> None:
        self._forget(new.key)
        self._rows.add(new)
        prompt, output = new.tokens[: new.prompt_tokens], new.tokens[new.prompt_tokens :]
        self._sampler.add(new.key, new.sampling, prompt, output, new.grammar)
        self._known.add(new.key)
        if new.adapter is not None:
            self._adapters[new.key] = new.adapter

    def _answers(self, plan: StepPlan, arrays: Arrays, logits: Logits) -> tuple[Sampled, ...]:
        """Sample, and put each answer at its work's place."""
        answers = [Sampled(item.key, ()) for item in plan.work]
        for rows in arrays.prompts:
            key = plan.work[rows.at].key
            part = logits[rows.first : rows.first + len(rows.given)]
            entries = self._sampler.prompt_logprobs(part, rows.given.tolist(), rows.k, rows.wanted)
            answers[rows.at] = Sampled(key, (), (), tuple(entries))
        if not arrays.keys:
            return tuple(answers)
        stats = getattr(self._model, "row_stats", None)
        if (sampled := arrays.sample_rows) is not None:
            logits = logits[sampled]
            stats = None if stats is None else tuple(part[sampled] for part in stats)
        choices = self._sampler.sample(logits, arrays.keys, *([] if stats is None else [stats]))
        for index, key, choice in zip(arrays.sampling, arrays.keys, choices, strict=True):
            if choice.error is not None:
                answers[index] = Sampled(key, (), error=choice.error)
                continue
            self._rows.push(key, choice.token)
            logprobs = () if choice.logprobs is None else (choice.logprobs,)
            answers[index] = Sampled(
                key, (choice.token,), logprobs, answers[index].prompt_logprobs, complete=choice.complete
            )
        return tuple(answers)


def _native_sampler(vocab: int, rows: int) -> RowSampler:
    from octavo.runner.sampling import Sampler

    return Sampler(vocab, rows)
