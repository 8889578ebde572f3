"""What the plan has seen of its logits gives the sampler the same draws as its own passes over them."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.ops.contract import Batch, Limits, Ops, Param, Precision
from octavo.ops.layouts import Dense
from octavo.ops.native import NativeRunnable
from octavo.ops.trace import trace
from octavo.runner.sampling import Sampler
from octavo.types.engine import SamplingSpec

ROWS, WIDTH = 5, 48
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.7},
    {"temperature": 1.0, "logit_bias": ((3, 2.0),)},
    {"temperature": 1.0, "logprobs": 4},
]


def logits_of(vocab: int, *, broken: int | None = None) -> tuple[NativeRunnable, np.ndarray]:
    """A plan whose last op is one matrix product, and its logits [ROWS, vocab]; row `broken` is NaN."""
    draw = np.random.default_rng(vocab)
    table, head = Param((ROWS, WIDTH), kind="table", name="t"), Param((vocab, WIDTH), kind="matrix", name="h")
    rows = draw.normal(0, 1, table.shape).astype(np.float32)
    if broken is not None:
        rows[broken] = np.nan
    weights = draw.normal(0, 0.4, head.shape).astype(np.float32)

    def model(op: Ops) -> object:
        step = op.inputs()
        return op.linear(op.take(op.embedding(step.token_ids, table), step.logit_rows), head)

    bound = NativeRunnable(
        trace(model),
        (),
        [(table, Dense(rows, "float32")), (head, Dense(weights, "float32"))],
        Precision(),
        Limits(ROWS, ROWS, ROWS),
        threads=2,
    )
    order = np.arange(ROWS, dtype=np.int32)
    ones = np.ones(ROWS, np.int32)
    starts = np.arange(ROWS + 1, dtype=np.int32)
    batch = Batch(order, 0 * order, ones, starts, ones, np.zeros((ROWS, 1), np.int32), order)
    return bound, bound.forward(batch)


@pytest.mark.parametrize("vocab", [1, 17, 1024, 1025, 5000])
def test_stats_are_those_of_the_logits(vocab: int) -> None:
    bound, logits = logits_of(vocab)
    maxima, sums = bound.row_stats
    for block in range(sums.shape[1]):
        part = logits[:, block * 1024 : (block + 1) * 1024].astype(np.float64)
        top = part.max(axis=1)
        assert np.array_equal(maxima[:, 16 * block : 16 * block + 16].max(axis=1), top)
        np.testing.assert_allclose(sums[:, block], np.exp(part - top[:, None]).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_are_the_same(settings: dict) -> None:
    bound, logits = logits_of(3000)
    answers = []
    for stats in (None, bound.row_stats):
        sampler = Sampler(3000, ROWS)
        for row in range(ROWS):
            sampler.add(row, SamplingSpec(max_tokens=99, seed=row, **settings), [1], [])
        answers.append([sampler.sample(logits, range(ROWS), stats) for _ in range(40)])
    assert answers[0] == answers[1]


def test_nan_is_seen_through_the_stats() -> None:
    bound, logits = logits_of(3000, broken=2)
    sampler = Sampler(3000, ROWS)
    for row in range(ROWS):
        sampler.add(row, SamplingSpec(max_tokens=9, temperature=1.0), [1], [])
    drawn = sampler.sample(logits, range(ROWS), bound.row_stats)
    assert [one.error is None for one in drawn] == [True, True, False, True, True]
