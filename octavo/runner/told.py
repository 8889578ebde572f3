"""What is told of a token under a --logprobs-mode that the native sampler does not know.

``raw_logits`` are the model's own; ``processed_logits`` are what was drawn from, after bias, penalties,
forms, temperature, min_p, top_k and top_p, and ``processed_logprobs`` their log softmax. Written the obvious
way: the slow twin's own steps, once more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.runner.sampling_reference import GREEDY_BELOW, kept, log_probabilities
from octavo.types.engine import TokenLogprobs

Logits = NDArray[np.float32]
Ids = NDArray[np.int32]


def drawn_from(y: Logits, temperature: float, top_k: int, top_p: float, min_p: float) -> Logits:
    """Edited logits y [vocab] after temperature and what cuts the vocabulary; greedy ones stay."""
    if temperature < GREEDY_BELOW:
        return y
    ids, _ = kept(y, temperature, top_k, top_p, min_p)
    left = np.full_like(y, -np.inf)
    left[ids] = y[ids] / np.float32(temperature)
    return left


def told(values: Logits, mode: str, token: int, best: int, named: Ids | None) -> TokenLogprobs:
    """Of the token, and of `named` or the `best` (-1: all); `values` [vocab] are the mode's logits."""
    ranks = ranks_of(values, named) if named is not None else []
    if mode == "processed_logprobs":
        values = log_probabilities(values).astype(np.float32)
    if named is None:
        named = _likeliest(values, len(values) if best == -1 else min(best, len(values)))
        ranks = list(range(1, len(named) + 1))
    own = ranks_of(values, np.array([token], np.int32))
    return TokenLogprobs(
        (token, *named.tolist()),
        (float(values[token]), *values[named].tolist()),
        (*own, *ranks),
    )


def ranks_of(x: Logits, ids: Ids) -> list[int]:
    """Places of `ids` among the logits x [vocab], 1 for the largest; of equals the lower id comes first."""
    values = x[ids]
    above = np.sort(x[x >= values.min()])
    right = np.searchsorted(above, values, "right")
    ranks: list[int] = (1 + len(above) - right).tolist()
    for i in np.flatnonzero(right - np.searchsorted(above, values, "left") > 1).tolist():
        ranks[i] += int(np.count_nonzero(x[: ids[i]] == values[i]))
    return ranks


def _likeliest(values: Logits, count: int) -> Ids:
    """The `count` largest by falling value, the lower id first among equals; fewer where values are -inf."""
    if count < 1:
        return np.zeros(0, np.int32)
    least = np.partition(values, -count)[-count]
    ids = np.flatnonzero((values >= least) & (values > -np.inf))
    return ids[np.lexsort((ids, -values[ids]))][:count].astype(np.int32)
