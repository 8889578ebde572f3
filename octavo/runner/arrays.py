"""The rows that the runner keeps for running sequences, and the arrays that it makes of them each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Batch, Limits
from octavo.types.engine import NewSequence, StepPlan, Work

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class PromptRows:
    """Rows of logits whose next token lies in a prompt."""

    at: int
    """Index of the work in the plan."""
    first: int
    """The first of its rows of logits; they are consecutive."""
    given: Ints
    """[rows] the tokens that the prompt has there."""
    k: int
    """How many of the best tokens to report besides."""
    wanted: Ints | None = None
    """[rows, n] tokens to report in their place; -1 is none."""


@dataclass(frozen=True)
class _Scored:
    """What a sequence wants to know of its prompt."""

    k: int
    start: int
    """How many positions it does not, from the first that could be told."""
    wanted: Ints | None
    """[positions or 1, n]"""

    def of(self, first: int, count: int) -> Ints | None:
        """The wanted tokens of `count` positions from `first` on, None without any."""
        if self.wanted is None:
            return None
        if len(self.wanted) == 1:
            return np.broadcast_to(self.wanted, (count, self.wanted.shape[1]))
        return self.wanted[first - self.start : first - self.start + count]


@dataclass(frozen=True)
class Arrays:
    """One step as arrays."""

    batch: Batch
    sampling: list[int]
    """Indices of the works that sample."""
    keys: list[int]
    """Their keys."""
    sample_rows: Ints | None
    """[sampling] their rows of logits; None: all rows, in this order."""
    prompts: list[PromptRows]


class Rows:
    """Block tables, newest tokens and prompts, one row for each key."""

    def __init__(self, limits: Limits) -> None:
        """Sizes: limits.sequences rows of limits.max_model_len tokens."""
        blocks = -(-limits.max_model_len // limits.block_size)
        self._tables: Ints = np.zeros((limits.sequences, blocks), np.int32)
        self._held: Ints = np.zeros(limits.sequences, np.int32)
        self._newest: Ints = np.zeros(limits.sequences, np.int32)
        self._prompt_tokens: Ints = np.zeros(limits.sequences, np.int32)
        self._given: list[Ints] = [np.zeros(0, np.int32)] * limits.sequences
        self._scored: dict[int, _Scored] = {}
        self._block_size = limits.block_size

    def add(self, new: NewSequence) -> None:
        """Give a sequence its row, whatever stood there."""
        key = new.key
        given = np.array(new.tokens, np.int32)
        self._given[key] = given
        self._newest[key] = given[-1]
        self._prompt_tokens[key] = new.prompt_tokens
        self._held[key] = 0
        self._scored.pop(key, None)
        spec = new.sampling
        if spec.prompt_logprobs is not None:
            wanted = np.array(spec.prompt_logprob_ids, np.int32) if spec.prompt_logprob_ids else None
            self._scored[key] = _Scored(spec.prompt_logprobs, spec.prompt_logprob_start, wanted)

    def push(self, key: int, token: int) -> None:
        """The newest token of a sequence, which its next step computes."""
        self._newest[key] = token

    def arrays(self, plan: StepPlan) -> Arrays:
        """Batch and bookkeeping of a plan with at least one work."""
        work = plan.work
        for item in work:
            if item.new_blocks:
                held = int(self._held[item.key])
                self._tables[item.key, held : held + len(item.new_blocks)] = item.new_blocks
                self._held[item.key] = held + len(item.new_blocks)
        keys = np.array([item.key for item in work], np.int32)
        starts = np.array([item.start for item in work], np.int32)
        counts = np.array([item.count for item in work], np.int32)
        context = starts + counts
        seq_starts = np.zeros(len(work) + 1, np.int32)
        np.cumsum(counts, out=seq_starts[1:])
        sampling = [index for index, item in enumerate(work) if item.sample]
        if len(work) == int(seq_starts[-1]):
            positions, prompt_tokens = starts, self._prompt_tokens[keys]
        else:
            offsets = np.repeat(starts - seq_starts[:-1], counts)
            positions = np.arange(seq_starts[-1], dtype=np.int32) + offsets
            prompt_tokens = np.repeat(self._prompt_tokens[keys], counts)
        logit_rows, sample_rows, prompts = self._logit_rows(work, seq_starts, sampling)
        batch = Batch(
            token_ids=self._token_ids(work, keys, seq_starts),
            positions=positions,
            rope_lens=np.maximum(positions + 1, prompt_tokens),
            seq_starts=seq_starts,
            context_lens=context,
            block_tables=self._tables[keys, : -(-int(context.max()) // self._block_size)],
            logit_rows=logit_rows,
        )
        return Arrays(batch, sampling, [work[index].key for index in sampling], sample_rows, prompts)

    def _token_ids(self, work: tuple[Work, ...], keys: Ints, seq_starts: Ints) -> Ints:
        """Newest tokens where one is wanted, slices of what was given elsewhere."""
        if len(work) == int(seq_starts[-1]) and all(item.sample for item in work):
            return self._newest[keys]
        tokens = np.empty(seq_starts[-1], np.int32)
        for item, key, first in zip(work, keys.tolist(), seq_starts.tolist(), strict=False):
            if item.sample and item.count == 1:
                tokens[first] = self._newest[key]
            else:
                tokens[first : first + item.count] = self._given[key][item.start : item.start + item.count]
        return tokens

    def _logit_rows(
        self, work: tuple[Work, ...], seq_starts: Ints, sampling: list[int]
    ) -> tuple[Ints, Ints | None, list[PromptRows]]:
        """Which tokens' logits are wanted; which rows are sampled (None: all); which belong to prompts."""
        last = seq_starts[1:] - 1
        if not self._scored:
            return (last if len(sampling) == len(work) else last[sampling]), None, []
        parts: list[Ints] = []
        sample_rows: list[int] = []
        prompts: list[PromptRows] = []
        row = 0
        for index, item in enumerate(work):
            scored = self._scored.get(item.key)
            if scored is not None:
                first = max(item.start, scored.start)
                inside = min(item.start + item.count, int(self._prompt_tokens[item.key]) - 1) - first
                if inside > 0:
                    given = self._given[item.key][first + 1 : first + 1 + inside]
                    prompts.append(PromptRows(index, row, given, scored.k, scored.of(first, inside)))
                    offset = seq_starts[index] + first - item.start
                    parts.append(offset + np.arange(inside, dtype=np.int32))
                    row += inside
            if item.sample:
                parts.append(last[index : index + 1])
                sample_rows.append(row)
                row += 1
        empty = np.zeros(0, np.int32)
        rows = np.concatenate([empty, *parts])
        return rows, (np.array(sample_rows, np.int32) if prompts else None), prompts
