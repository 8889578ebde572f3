"""Sampling of a step's rows: settings kept as arrays, the work done natively.

Each row (a sequence's key) has its settings in columns of two arrays that are handed over as they are, so a
step of plain rows costs one native call. Rows with a logit bias, allowed ids, bad words, min_tokens or
penalties also have a :class:`_Edits` that says each step which logits change; rows with a grammar have a walk
in :class:`~octavo.runner.masks.Masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.runner.masks import Masks
from octavo.runner.processors import Processors
from octavo.runner.sampling_reference import edited_row
from octavo.runner.told import drawn_from, ranks_of, told
from octavo.types.engine import NOT_FINITE, NOTHING_TO_DRAW, SamplingSpec, TokenLogprobs
from octavo.types.grammar import Grammar

Logits = NDArray[np.float32]
Ids = NDArray[np.int32]

ERRORS = {
    1: f"{NOT_FINITE}NaN.",
    2: f"{NOT_FINITE}infinity.",
    3: NOTHING_TO_DRAW,
}
"""What a sampler's flag means; 0 is none."""

_TEMPERATURE, _TOP_P, _MIN_P, _REPETITION, _PRESENCE, _FREQUENCY = range(6)
_TOP_K, _SEED, _POSITION, _LOGPROBS = range(4)
NO_LOGPROBS = -2
_WRITABLE: tuple[Literal["C"], Literal["W"]] = ("C", "W")
_NO_BOUNDS = np.zeros(0, np.int64)
_NO_IDS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)
_PLAIN = (_NO_BOUNDS, _NO_IDS) * 2 + (_NO_BOUNDS, _NO_IDS, _NO_VALUES) + (_NO_BOUNDS, _NO_IDS, _NO_IDS)


class Drawn(NamedTuple):
    """A row's answer. With `error` there is no token (-1) and the sequence cannot go on."""

    token: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    complete: bool = False


class Sampler:
    """Draws tokens for rows that were added; remembers what each has drawn.

    A draw depends on the row's logits, its settings and how many tokens it has drawn, never on other rows.
    """

    def __init__(self, vocab: int, rows: int, native: bool = True, pool: Any = None) -> None:
        """`vocab`: width of the logits. `rows`: expected rows (more make it grow).

        `native` False takes the slow twin. `pool`: an octavo._native.Pool to spread rows over, or None.
        """
        self._vocab = vocab
        self._reals = np.zeros((6, max(rows, 1)), np.float32)
        self._integers = np.zeros((4, max(rows, 1)), np.int64)
        self._edits: dict[int, _Edits] = {}
        self._with_logprobs: set[int] = set()
        self._named: dict[int, Ids] = {}
        """Rows that want the log-probabilities of tokens by their ids."""
        self._modes: dict[int, str] = {}
        """Those that want something else than the log softmax of the model's own logits."""
        self._pool = pool
        self._masks = Masks(rows)
        self._processors = Processors()
        self._sample, self._score = _functions(native)

    def add(
        self,
        row: int,
        spec: SamplingSpec,
        prompt: Sequence[int],
        output: Sequence[int],
        grammar: Grammar | None = None,
    ) -> None:
        """Begin (or resume, with what it had drawn as `output`) a sequence at `row`."""
        self.remove(row)
        if row >= self._reals.shape[1]:
            more = max(row + 1, 2 * self._reals.shape[1]) - self._reals.shape[1]
            self._reals = np.pad(self._reals, ((0, 0), (0, more)))
            self._integers = np.pad(self._integers, ((0, 0), (0, more)))
        self._reals[:, row] = (
            spec.temperature,
            spec.top_p,
            spec.min_p,
            spec.repetition_penalty,
            spec.presence_penalty,
            spec.frequency_penalty,
        )
        logprobs = NO_LOGPROBS if spec.logprobs is None else spec.logprobs
        self._integers[:, row] = (min(spec.top_k, self._vocab), spec.seed, len(output), logprobs)
        if spec.logprobs is not None:
            self._with_logprobs.add(row)
            if spec.logprobs_mode != "raw_logprobs":
                self._modes[row] = spec.logprobs_mode
        if spec.logprob_ids:
            self._named[row] = np.array(spec.logprob_ids, np.int32)
        edits = _Edits(spec, prompt, output)
        if edits.needed:
            self._edits[row] = edits
        if grammar is not None:
            self._masks.add(row, grammar, edits.ends, output)
        if spec.processors:
            self._processors.add(row, spec.processors, prompt, output)

    def remove(self, row: int) -> None:
        """Forget a row; an unknown one is fine."""
        self._masks.remove(row)
        self._processors.remove(row)
        self._edits.pop(row, None)
        self._with_logprobs.discard(row)
        self._named.pop(row, None)
        self._modes.pop(row, None)

    def sample(self, logits: Logits, rows: Sequence[int], stats: Any = None) -> list[Drawn]:
        """Draw a token per row of `logits` [n, vocab] for sequence rows[i], and count it as its output.

        `stats`: what the plan has seen of these rows already (NativeRunnable.row_stats), which saves a pass.
        The logits are as before afterwards, but must not be read meanwhile: rows are edited in place.
        """
        logits = np.require(logits, np.float32, _WRITABLE)
        if self._processors:
            return self._sample_processed(logits, rows, stats)
        return self._sample_rows(logits, rows, stats)

    def _sample_processed(self, logits: Logits, rows: Sequence[int], stats: Any) -> list[Drawn]:
        """The same where some rows have functions that change their logits first. What is told of tokens is
        told of the logits as they were.
        """
        before, errors = self._processors.apply(logits, rows)
        drawn = self._sample_rows(logits, rows, None if before else stats)
        for i, raw in before:
            row, one, logits[i] = rows[i], drawn[i], raw
            if row in errors:
                drawn[i] = Drawn(-1, None, errors[row])
            elif one.error is None:
                self._processors.push(row, one.token)
                if one.logprobs is not None and not self._modes.get(row, "").startswith("processed"):
                    drawn[i] = one._replace(logprobs=self._told(raw, row, one.token))
        return drawn

    def _told(self, x: Logits, row: int, token: int) -> TokenLogprobs:
        """What is told of a row's token, from the model's logits x [vocab]."""
        if row in self._modes:
            return told(x, "raw_logits", token, int(self._integers[_LOGPROBS, row]), self._named.get(row))
        answers = self._score(x[None], np.array([token], np.int32), int(self._integers[_LOGPROBS, row]), None)
        return self._described(x, answers, 0, row, token)

    def _sample_rows(self, logits: Logits, rows: Sequence[int], stats: Any) -> list[Drawn]:
        slots = np.asarray(rows, np.int32)
        changes = self._changes(rows) if self._edits else _PLAIN
        masks = (self._masks.bits(rows),) if self._masks else ()
        answers = self._sample(
            logits, slots, self._reals, self._integers, *changes, self._pool, stats, *masks
        )
        self._integers[_POSITION, slots] += 1
        tokens = answers[0].tolist()
        special = self._by_mode(logits, rows, tokens, changes, masks) if self._modes else {}
        if self._edits:
            self._record(rows, tokens)
        if self._masks:
            drawn = self._formed(logits, rows, tokens, answers)
        elif not self._with_logprobs and min(tokens, default=0) >= 0:
            return [Drawn(token) for token in tokens]
        else:
            drawn = [
                self._drawn(logits, answers, i, row, token)
                for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
            ]
        for i, entry in special.items():
            drawn[i] = drawn[i]._replace(logprobs=entry)
        return drawn

    def _by_mode(
        self,
        logits: Logits,
        rows: Sequence[int],
        tokens: list[int],
        changes: tuple[NDArray[Any], ...],
        masks: tuple[Any, ...],
    ) -> dict[int, TokenLogprobs]:
        """What is told of the tokens of rows that have a mode of their own, by their places."""
        found = {}
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            mode = self._modes.get(row)
            if mode is None or token < 0:
                continue
            x = logits[i]
            reals, integers = self._reals[:, row], self._integers[:, row]
            if mode != "raw_logits":
                x = edited_row(x, i, reals, changes, *masks)
                temperature, top_p, min_p = reals[[_TEMPERATURE, _TOP_P, _MIN_P]].tolist()
                x = drawn_from(x, temperature, int(integers[_TOP_K]), top_p, min_p)
            found[i] = told(x, mode, token, int(integers[_LOGPROBS]), self._named.get(row))
        return found

    def _formed(
        self, logits: Logits, rows: Sequence[int], tokens: list[int], answers: Answers
    ) -> list[Drawn]:
        """The answers where some rows have grammars, which take the tokens now."""
        complete, errors = self._masks.push(rows, tokens)
        drawn = []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if (error := errors.get(row)) is not None:
                drawn.append(Drawn(-1, None, error))
                continue
            one = self._drawn(logits, answers, i, row, token)
            drawn.append(one._replace(complete=True) if row in complete else one)
        return drawn

    def prompt_logprobs(
        self, logits: Logits, given: Sequence[int], k: int, wanted: Ids | None = None
    ) -> list[TokenLogprobs]:
        """Log-probabilities of given[i] under row i of `logits` [n, vocab], and the k best (-1: all).

        `wanted` [n, m]: those of these tokens in place of the best; -1 has -inf, and no rank is counted.
        A row without usable logits has the value NaN.
        """
        ids = np.asarray(given, np.int32)
        answers = self._score(np.require(logits, np.float32, _WRITABLE), ids, k, self._pool)
        entries = [
            TokenLogprobs((token,), (float("nan"),), (0,)) if flag else _described(answers, i, token)
            for i, (token, flag) in enumerate(zip(ids.tolist(), answers[1].tolist(), strict=True))
        ]
        if wanted is None:
            return entries
        return [
            _joined_by(one, more, named_logprobs(x, more), [0] * len(more))
            for one, more, x in zip(entries, wanted, logits, strict=True)
        ]

    def _drawn(self, logits: Logits, answers: Answers, i: int, row: int, token: int) -> Drawn:
        """Row i of the answers as a value."""
        if token < 0:
            return Drawn(token, None, ERRORS[int(answers[1][i])])
        if row not in self._with_logprobs:
            return Drawn(token)
        return Drawn(token, self._described(logits[i], answers, i, row, token))

    def _described(self, x: Logits, answers: Answers, i: int, row: int, token: int) -> TokenLogprobs:
        """The log-probabilities that `row` wants beside its token, whose logits are x [vocab]."""
        entry, ids = _described(answers, i, token), self._named.get(row)
        return entry if ids is None else _joined_by(entry, ids, named_logprobs(x, ids), ranks_of(x, ids))

    def _record(self, rows: Sequence[int], tokens: list[int]) -> None:
        """Tell the rows that have edits what they drew."""
        for row, token in zip(rows, tokens, strict=True):
            edits = self._edits.get(row)
            if edits is not None and token >= 0:
                edits.push(token)
                if not edits.needed:
                    del self._edits[row]

    def _changes(self, rows: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """This step's changes to logits, as lists of all rows one after the other."""
        found = [self._edits.get(row) for row in rows]
        if not any(found):
            return _PLAIN
        banned = [None if edits is None else edits.banned() for edits in found]
        bias = [None if edits is None else edits.bias for edits in found]
        seen = [None if edits is None or edits.seen is None else edits.seen.listed() for edits in found]
        return (
            *_joined([None if edits is None else edits.allowed for edits in found]),
            *_joined(banned),
            *_joined([None if pair is None else pair[0] for pair in bias]),
            _concatenated([pair[1] for pair in bias if pair is not None], _NO_VALUES),
            *_joined([None if pair is None else pair[0] for pair in seen]),
            _concatenated([pair[1] for pair in seen if pair is not None], _NO_IDS),
        )


Answers = tuple[NDArray[Any], ...]
"""token, flag, logprob, rank [n]; bounds [n + 1] of the best tokens' ids and values."""


def _functions(native: bool) -> tuple[Callable[..., Answers], Callable[..., Answers]]:
    """`sample` and `score`, native or the slow twin."""
    if native:
        from octavo import _native

        return _native.sample, _native.score
    from octavo.runner import sampling_reference

    return sampling_reference.sample, sampling_reference.score


def _described(answers: Answers, i: int, token: int) -> TokenLogprobs:
    """The log-probabilities of row i, whose chosen or given token is `token`."""
    _, _, logprob, rank, bounds, best, values = answers
    begin, end = int(bounds[i]), int(bounds[i + 1])
    ids = [id for id in best[begin:end].tolist() if id >= 0]  # fewer where logits are -inf
    return TokenLogprobs(
        (token, *ids),
        (float(logprob[i]), *values[begin : begin + len(ids)].tolist()),
        (int(rank[i]), *range(1, len(ids) + 1)),
    )


def named_logprobs(x: Logits, ids: Ids) -> list[float]:
    """Log-probabilities of `ids` under the logits x [vocab]; -inf for -1."""
    top = x.max()
    total = np.log(np.exp(x - top).sum(dtype=np.float64)) + float(top)
    values = np.where(ids < 0, -np.inf, np.minimum(x[ids].astype(np.float64) - total, 0.0))
    found: list[float] = values.astype(np.float32).tolist()
    return found


def _joined_by(entry: TokenLogprobs, ids: Ids, values: list[float], ranks: list[int]) -> TokenLogprobs:
    """An entry with more tokens behind its own."""
    return TokenLogprobs((*entry.ids, *ids.tolist()), (*entry.values, *values), (*entry.ranks, *ranks))


def _joined(parts: list[Ids | None]) -> tuple[NDArray[np.int64], Ids]:
    """Lists of ids by row as (bounds, ids); no bounds when every list is empty."""
    sizes = [0 if part is None else len(part) for part in parts]
    if not any(sizes):
        return _NO_BOUNDS, _NO_IDS
    bounds = np.fromiter(accumulate(sizes, initial=0), np.int64, len(sizes) + 1)
    return bounds, np.concatenate([part for part in parts if part is not None])


def _concatenated(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else empty


class _Edits:
    """What changes in one row's logits before they are sampled."""

    def __init__(self, spec: SamplingSpec, prompt: Sequence[int], output: Sequence[int]) -> None:
        self.allowed = np.array(spec.allowed_ids, np.int32) if spec.allowed_ids else None
        self.bias: tuple[Ids, Logits] | None = None
        if spec.logit_bias:
            ids, values = zip(*spec.logit_bias, strict=True)
            self.bias = np.array(ids, np.int32), np.array(values, np.float32)
        self.seen: _Seen | None = None
        if spec.repetition_penalty != 1.0:
            self.seen = _Seen(prompt, output)
        elif spec.presence_penalty != 0.0 or spec.frequency_penalty != 0.0:
            self.seen = _Seen((), output)
        self._bad_words = spec.bad_words
        self.ends = tuple(spec.end_ids) if spec.eos_id is None else (spec.eos_id, *spec.end_ids)
        self._min_tokens = spec.min_tokens if self.ends else 0
        self._count = len(output)
        self._tail = max((len(word) for word in spec.bad_words), default=1) - 1
        self._output = list(output[-self._tail :]) if self._tail else []

    @property
    def needed(self) -> bool:
        """Whether any later step may change a logit."""
        fixed = self.allowed is not None or self.bias is not None or self.seen is not None
        return fixed or bool(self._bad_words) or self._count < self._min_tokens

    def banned(self) -> Ids | None:
        """Ids that may not come next: ends before min_tokens, last tokens of bad words that have begun."""
        ids = list(self.ends) if self._count < self._min_tokens else []
        for word in self._bad_words:
            begun = len(word) - 1
            if word and (begun == 0 or self._output[-begun:] == list(word[:-1])):
                ids.append(word[-1])
        return np.array(ids, np.int32) if ids else None

    def push(self, token: int) -> None:
        """Count a drawn token."""
        self._count += 1
        if self._tail:
            self._output.append(token)
            del self._output[: -self._tail]
        if self.seen is not None:
            self.seen.push(token)


class _Seen:
    """The distinct tokens of a sequence, and how often each is in its output."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        ids, inverse = np.unique(np.array([*prompt, *output], np.int64), return_inverse=True)
        counts = np.bincount(inverse[len(prompt) :], minlength=len(ids))
        self._size = len(ids)
        self._ids = np.zeros(max(2 * self._size, 64), np.int32)
        self._counts = np.zeros_like(self._ids)
        self._ids[: self._size] = ids
        self._counts[: self._size] = counts
        self._place = {token: place for place, token in enumerate(ids.tolist())}

    def listed(self) -> tuple[Ids, Ids]:
        """(ids, counts in the output); views that the next push may change."""
        return self._ids[: self._size], self._counts[: self._size]

    def push(self, token: int) -> None:
        """Count one more of `token` in the output."""
        place = self._place.get(token)
        if place is None:
            if self._size == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            place = self._place[token] = self._size
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1
