"""The runner of models that pool: a step's plan to vectors, labels or scores in place of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Limits, Runnable
from octavo.runner.arrays import Arrays
from octavo.runner.runner import AdapterPlaces, Choice, Logits, Runner
from octavo.types.engine import NewSequence, Sampled, SamplingSpec, StepPlan, TokenLogprobs
from octavo.types.grammar import Grammar
from octavo.types.pooling import PoolingSpec

Ints = NDArray[np.int32]
F32 = NDArray[Any]


class _NoSampler:
    """Where nothing is sampled."""

    def add(
        self,
        row: int,
        spec: SamplingSpec,
        prompt: Sequence[int],
        output: Sequence[int],
        grammar: Grammar | None,
        /,
    ) -> None:
        """Nothing."""

    def remove(self, row: int, /) -> None:
        """Nothing."""

    def sample(self, logits: Logits, rows: Sequence[int], stats: Any = None, /) -> Sequence[Choice]:
        """Never called."""
        raise RuntimeError("a model that pools does not sample")

    def prompt_logprobs(
        self, logits: Logits, given: Sequence[int], k: int, wanted: Ints | None = None, /
    ) -> list[TokenLogprobs]:
        """Never called."""
        raise RuntimeError("a model that pools has no logits")


class PoolingRunner(Runner):
    """Runs plans whose sequences all pool."""

    def __init__(
        self, model: Runnable, limits: Limits, width: int, places: AdapterPlaces | None = None
    ) -> None:
        super().__init__(model, limits, width, _NoSampler(), places)
        self._specs: dict[int, PoolingSpec] = {}
        self._parts: dict[int, list[F32]] = {}
        """What chunks of prompts have given for each token so far."""

    def _add(self, new: NewSequence) -> None:
        super()._add(new)
        if new.pooling is None:
            raise RuntimeError("a sequence that does not pool reached a model that does")
        self._specs[new.key] = new.pooling
        self._parts.pop(new.key, None)

    def _forget(self, key: int) -> None:
        super()._forget(key)
        self._specs.pop(key, None)
        self._parts.pop(key, None)

    def _arrays(self, plan: StepPlan) -> Arrays:
        """The step with the rows that are pooled in place of those that are sampled."""
        arrays = self._rows.arrays(plan)
        starts = arrays.batch.seq_starts
        firsts: list[Ints] = []
        lasts: list[Ints] = []
        types: Ints | None = None
        for index, item in enumerate(plan.work):
            spec, first, last = self._specs[item.key], int(starts[index]), int(starts[index + 1]) - 1
            if spec.rows == "all":
                each = np.arange(first, last + 1, dtype=np.int32)
                firsts.append(each)
                lasts.append(each)
            elif item.sample:
                firsts.append(np.array([last if spec.rows == "last" else first], np.int32))
                lasts.append(np.array([first if spec.rows == "cls" else last], np.int32))
            if spec.second_from is not None:
                types = np.zeros(arrays.batch.tokens, np.int32) if types is None else types
                types[first + max(0, spec.second_from - item.start) : last + 1] = 1
        empty = np.zeros(0, np.int32)
        batch = replace(
            arrays.batch,
            logit_firsts=np.concatenate([empty, *firsts]),
            logit_rows=np.concatenate([empty, *lasts]),
            token_types=types,
        )
        return replace(arrays, batch=batch)

    def _answers(self, plan: StepPlan, arrays: Arrays, logits: Logits) -> tuple[Sampled, ...]:
        answers = []
        row = 0
        for item in plan.work:
            spec = self._specs[item.key]
            rows = item.count if spec.rows == "all" else int(item.sample)
            part = logits[row : row + rows]
            row += rows
            if spec.rows == "all" and (not item.sample or item.key in self._parts):
                self._parts.setdefault(item.key, []).append(np.array(part))
            if not item.sample:
                answers.append(Sampled(item.key, ()))
                continue
            if item.key in self._parts:
                part = np.concatenate(self._parts.pop(item.key))
            answers.append(_answer(item.key, part, spec))
        return tuple(answers)


def _answer(key: int, rows: F32, spec: PoolingSpec) -> Sampled:
    if not np.isfinite(rows).all():
        return Sampled(key, (), error="The model's numbers are not finite for this input.")
    pooled = activated(rows[:, : spec.dimensions], spec.activation)
    return Sampled(key, (), pooled=pooled if spec.rows == "all" else pooled[0])


def activated(rows: F32, activation: str) -> F32:
    """rows [n, width] through normalize (L2), sigmoid, softmax or nothing; always a copy."""
    if activation == "normalize":
        # The smallest length is that of torch.nn.functional.normalize.
        length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        return np.asarray(rows / np.maximum(length, np.float32(1e-12)), np.float32)
    if activation == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-rows)), np.float32)
    if activation == "softmax":
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
    return np.array(rows, np.float32)
