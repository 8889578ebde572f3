"""Mixtures of experts: every layout, every number of tokens, what is chosen and what is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from op_cases import LIMITS, OpModel, step
from quant_cases import CASES, QuantCase

from octavo.ops.contract import ExpertsParams, ExpertsSpec, Param, Precision, Runnable
from octavo.ops.layouts import Dense, Experts, Layout, Online
from octavo.ops.reference import NumpyRunnable, route

Bound = Callable[..., Runnable]
DENSE = tuple(
    QuantCase(dtype, lambda rng, rows, cols, dtype=dtype: Dense.of(rng.standard_normal((rows, cols)), dtype))
    for dtype in ("float32", "float16", "bfloat16")
)
COUNT, TOP_K, WIDTH, FFN = 6, 3, 96, 40


def mixture(make: Callable[[np.random.Generator, int, int], Layout], mixed: bool = False) -> OpModel:
    """A mixture whose matrices come from `make`; `mixed`: every second gate is plain."""
    model, rng = OpModel(), np.random.default_rng(8)
    x = model.input("x", model.noise(40, WIDTH))
    scores = model.input("scores", model.noise(40, COUNT))
    found = []
    for name, out, inner in (("gate", FFN, WIDTH), ("up", FFN, WIDTH), ("down", WIDTH, FFN)):
        layouts = [make(rng, out, inner) for _ in range(COUNT)]
        if mixed and name == "gate":
            layouts[::2] = [Dense.of(one.dequantize(), "float32") for one in layouts[::2]]
        found.append(Param((COUNT, out, inner), kind="experts", name=name))
        setattr(model, name, found[-1])
        model.tensors[name] = Experts.of(layouts)
    spec = ExpertsSpec(COUNT, TOP_K, renormalise=True)
    model.call = lambda op: op.experts(x(op), scores(op), ExpertsParams(*found), spec)
    return model


def answer(bound: Bound, model: OpModel, precision: Precision, tokens: int) -> np.ndarray:
    runnable = bound(model, precision, LIMITS)
    runnable.allocate_cache(1)
    return np.array(runnable.forward(step([(0, 0, tokens)])))


def reference(model: OpModel, precision: Precision, tokens: int) -> np.ndarray:
    return answer(lambda m, p, n: NumpyRunnable(m, m.tensors, p, n), model, precision, tokens)


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        *((case, "int8") for case in (*DENSE, *CASES)),
        *((case, seen) for case in (*DENSE, *CASES[::5]) for seen in ("bfloat16", "float32")),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_layout_equals_the_reference(case: QuantCase, seen: str, runnable: Bound) -> None:
    model = mixture(case.make)
    precision = Precision("bfloat16" if seen == "bfloat16" else "float32", quantized=seen)
    got, expected = (answer(runnable, model, precision, 27), reference(model, precision, 27))
    # What the downs see is rounded: where the sums before differ in their last bit it may fall to the other
    # side of a tie, a step of 1/127 or 1/256 of one number among forty.
    off = np.abs(got - expected)
    assert off.max() <= 2e-2 * np.abs(expected).max()
    # So may a weight that is rounded while it is packed.
    online = isinstance(case.make(np.random.default_rng(0), 1, 32), Online)
    assert np.median(off) <= (1e-3 if online else 1e-5) * np.abs(expected).max()


@pytest.mark.parametrize("case", [*DENSE, *CASES], ids=lambda c: c.name)
def test_a_token_does_not_depend_on_the_others(case: QuantCase, runnable: Bound) -> None:
    model = mixture(case.make)
    bound = runnable(model, Precision("bfloat16"), LIMITS)
    if not hasattr(bound, "isa"):
        pytest.skip("torch's own products depend on the number of rows")
    bound.allocate_cache(1)
    alone = np.array(bound.forward(step([(0, 0, 1)])))
    for tokens in (2, 3, 13, 40):
        together = np.array(bound.forward(step([(0, 0, tokens)])))
        np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("name", ["int8-32", "int4-64-order", "w8a8-fixed-zero", "bits6-sub-16"])
def test_experts_of_several_layouts(name: str, runnable: Bound) -> None:
    model = mixture(next(case.make for case in CASES if case.name == name), mixed=True)
    for tokens in (1, 9):
        got, expected = answer(runnable, model, Precision(), tokens), reference(model, Precision(), tokens)
        assert np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max()


def test_the_choice() -> None:
    scores = np.array([[1, 3, 3, 2, 3], [np.nan, 0, -np.inf, 5, 1]], np.float32)
    chosen, shares = route(scores, ExpertsSpec(5, 2, scoring="chosen"))
    assert chosen.tolist() == [[1, 2], [3, 4]]
    np.testing.assert_allclose(shares[0], [0.5, 0.5])
    np.testing.assert_allclose(shares[1], [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))], rtol=1e-6)
    _, shares = route(scores[:1], ExpertsSpec(5, 2, scoring="softmax"))
    np.testing.assert_allclose(shares[0], np.exp(0) / np.exp(scores[0] - 3).sum(), rtol=1e-6)
    _, shares = route(scores[:1], ExpertsSpec(5, 2, scoring="sigmoid", renormalise=True, scale=3.0))
    np.testing.assert_allclose(shares[0], 1.5)


def test_scores_that_are_no_numbers_choose_all_the_same(runnable: Bound) -> None:
    model = mixture(DENSE[0].make)
    table = np.full((40, COUNT), np.nan, np.float32)
    model.tensors["scores"] = Dense(table, "float32")
    assert np.isnan(answer(runnable, model, Precision(), 3)).all()


def test_a_step_counts_the_experts_it_reads(runnable: Bound) -> None:
    bound = runnable(mixture(DENSE[0].make), Precision(), LIMITS)
    if not hasattr(bound, "step_bytes"):
        pytest.skip("the native backend counts")
    assert bound.step_bytes == TOP_K * 4 * (2 * 48 * WIDTH + 96 * FFN)
