"""The sampler written the obvious way in NumPy: the slow twin that tests the native one (csrc/sampler.h).

Same arguments, same answers, except where float32 sums and float64 ones fall on two sides of a boundary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = NDArray[np.int32]
Bounds = NDArray[np.int64]
Weights = NDArray[np.float64]
Answers = tuple[NDArray[Any], ...]

_MASK = 0xFFFFFFFF
GREEDY_BELOW = 1e-5
"""A smaller temperature is 0, as in vLLM."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four words from a counter of four and a key of two.

    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides output `position` of a sequence with `seed`: 53 random bits."""
    words = philox(
        (position & _MASK, position >> 32 & _MASK, 0, 0),
        (seed & _MASK, seed >> 32 & _MASK),
    )
    return float(((words[0] << 32 | words[1]) >> 11) * 2.0**-53)


def edited(
    x: Logits,
    *,
    allowed: Ids,
    banned: Ids,
    bias: Ids,
    bias_values: Logits,
    seen: Ids,
    seen_counts: Ids,
    repetition: float,
    presence: float,
    frequency: float,
    mask: Ids | None = None,
) -> Logits:
    """Logits [vocab] after mask, allowed ids, bans, bias and penalties; unknown ids are skipped."""
    vocab = len(x)
    y = x.copy()
    if mask is not None:
        y[np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab] == 0] = -np.inf
    if len(allowed):
        y[~np.isin(np.arange(vocab), allowed)] = -np.inf
    y[banned[banned < vocab]] = -np.inf
    np.add.at(y, bias[bias < vocab], bias_values[bias < vocab])
    inside = seen < vocab
    ids, counts = seen[inside], seen_counts[inside]
    y[ids] = np.where(y[ids] > 0, y[ids] / np.float32(repetition), y[ids] * np.float32(repetition))
    y[ids] -= np.float32(frequency) * counts.astype(np.float32)
    y[ids] -= np.float32(presence) * (counts > 0)
    return y


def ordered(x: Logits) -> Ids:
    """Token ids by falling logit, the lower id first among equals."""
    return np.lexsort((np.arange(len(x)), -x)).astype(np.int32)


def kept(
    x: Logits, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids, NDArray[np.float64]]:
    """The tokens that min_p, top_k and top_p keep, by id; their weights exp((x - max) / temperature)."""
    order = ordered(x)
    order = order[x[order] > -np.inf]
    value = x[order].astype(np.float64)
    if min_p > 0:
        order = order[value >= value[0] + temperature * np.log(min_p)]
    if top_k > 0:
        order = order[:top_k]
    weight = np.exp((x[order].astype(np.float64) - value[0]) / temperature)
    if top_p < 1:
        before = np.cumsum(weight) - weight
        order = order[: max(int(np.count_nonzero(before < top_p * weight.sum())), 1)]
    ids = np.sort(order)
    return ids, np.exp((x[ids].astype(np.float64) - value[0]) / temperature)


def pick(ids: Ids, weights: Weights, u: float) -> int:
    """The first token whose cumulative weight is more than u of the whole."""
    cumulative = np.cumsum(weights)
    above = np.flatnonzero(cumulative > u * cumulative[-1])
    return int(ids[above[0]]) if len(above) else int(ids[np.flatnonzero(weights)[-1]])


def flag_of(x: Logits) -> int:
    """0: usable, 1: NaN, 2: infinity, 3: nothing but -inf."""
    if np.isnan(x).any():
        return 1
    top = x.max()
    return 2 if top == np.inf else 3 if top == -np.inf else 0


def log_probabilities(x: Logits) -> NDArray[np.float64]:
    """log softmax of a row in float64."""
    y = x.astype(np.float64) - float(x.max())
    result: NDArray[np.float64] = y - np.log(np.exp(y).sum())
    return result


class _Collected:
    """Answers of the rows so far, in the native function's layout."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float, int]] = []
        self.best: list[tuple[int, float]] = []
        self.bounds = [0]

    def put(self, x: Logits, token: int, flag: int, best: int | None) -> None:
        """Add a row; `best`: None for no log-probabilities, else how many best tokens (-1: all)."""
        count = 0 if best is None else len(x) if best == -1 else min(best, len(x))
        if flag or best is None:
            self.rows.append((-1 if flag else token, flag, 0.0, 0))
            self.best += [(-1, 0.0)] * count
        else:
            logprobs, order = log_probabilities(x), ordered(x)
            rank = int(np.flatnonzero(order == token)[0]) + 1
            self.rows.append((token, 0, float(logprobs[token]), rank))
            self.best += [(int(i), logprobs[i]) if x[i] > -np.inf else (-1, -np.inf) for i in order[:count]]
        self.bounds.append(len(self.best))

    def answers(self) -> Answers:
        """The arrays that the native function gives."""
        token, flag, logprob, rank = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        ids, values = zip(*self.best, strict=True) if self.best else ((), ())
        return (
            np.array(token, np.int32),
            np.array(flag, np.uint8),
            np.array(logprob, np.float32),
            np.array(rank, np.int32),
            np.array(self.bounds, np.int64),
            np.array(ids, np.int32),
            np.array(values, np.float32),
        )


def sample(
    logits: Logits,
    slots: Ids,
    reals: NDArray[np.float32],
    integers: NDArray[np.int64],
    allowed_begin: Bounds,
    allowed: Ids,
    banned_begin: Bounds,
    banned: Ids,
    bias_begin: Bounds,
    bias: Ids,
    bias_values: Logits,
    seen_begin: Bounds,
    seen: Ids,
    seen_counts: Ids,
    pool: object = None,
    stats: object = None,
    masks: tuple[Ids, Ids] | None = None,
) -> Answers:
    """One token per row of logits [n, vocab] under the settings of slots[i].

    `reals` [6, slots]: temperature, top_p, min_p, repetition, presence, frequency. `integers` [4, slots]:
    top_k, seed, position, logprobs (-2: none). `*_begin` [n + 1] bound each row's part of a list; empty: no
    row has one. `masks`: [n] the row i has among [m, words], whose bits say what may be drawn; -1: all.
    Returns token (-1 when flagged), flag, logprob, rank [n], bounds [n + 1] of best ids and their values.
    """
    collected = _Collected()
    allow, ban = (allowed_begin, allowed), (banned_begin, banned)
    lists = (*allow, *ban, bias_begin, bias, bias_values, seen_begin, seen, seen_counts)
    for i, slot in enumerate(slots.tolist()):
        temperature, top_p, min_p = reals[:3, slot].tolist()
        top_k, seed, position, logprobs = integers[:, slot].tolist()
        x = logits[i]
        y = x
        if not (flag := flag_of(x)):
            y = edited_row(x, i, reals[:, slot], lists, masks)
            flag = flag_of(y)
        token = -1
        if not flag and temperature < GREEDY_BELOW:
            token = int(y.argmax())
        elif not flag:
            token = pick(*kept(y, temperature, top_k, top_p, min_p), uniform(seed, position))
        collected.put(x, token, flag, None if logprobs == -2 else logprobs)
    return collected.answers()


def edited_row(
    x: Logits,
    i: int,
    reals: NDArray[np.float32],
    lists: tuple[NDArray[Any], ...],
    masks: tuple[Ids, Ids] | None = None,
) -> Logits:
    """Row i's logits x [vocab] as `sample` edits them. `reals` [6]: its settings; `lists` and `masks`: those
    of all rows, as `sample` takes them.
    """
    allowed_begin, allowed, banned_begin, banned, bias_begin, bias, bias_values, seen_begin, seen, counts = (
        lists
    )
    _, _, _, repetition, presence, frequency = reals.tolist()
    return edited(
        x,
        allowed=_part(allowed_begin, allowed, i),
        banned=_part(banned_begin, banned, i),
        bias=_part(bias_begin, bias, i),
        bias_values=_part(bias_begin, bias_values, i),
        seen=_part(seen_begin, seen, i),
        seen_counts=_part(seen_begin, counts, i),
        repetition=repetition,
        presence=presence,
        frequency=frequency,
        mask=None if masks is None or masks[0][i] < 0 else masks[1][masks[0][i]],
    )


def score(logits: Logits, given: Ids, best: int, pool: object = None) -> Answers:
    """Log-probability and rank of given[i] in row i, and the `best` most likely tokens (-1: all)."""
    collected = _Collected()
    for x, token in zip(logits, given.tolist(), strict=True):
        flag = flag_of(x) or (0 if 0 <= token < len(x) else 3)
        collected.put(x, token, flag, best)
    return collected.answers()


def _part(bounds: Bounds, values: NDArray[Any], i: int) -> NDArray[Any]:
    """Row i's part of a list."""
    return values[bounds[i] : bounds[i + 1]] if len(bounds) else values[:0]
