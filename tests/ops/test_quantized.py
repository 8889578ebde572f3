"""Products with quantized matrices: every layout, odd sizes, every instruction set, against the NumPy twin.

Both sides round the activations in the same way, so that what is left is the order of float32 sums: 1e-5 of
the sum of the products' sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from op_cases import LIMITS, OpModel, step
from quant_cases import CASES, SIZES, QuantCase

from octavo.ops.contract import Param, Precision, Runnable
from octavo.ops.layouts import Int4Group, Int8, Layout, Online
from octavo.ops.reference import NumpyRunnable, settled
from octavo.ops.rounding import round_int8, round_matrix

Bound = Callable[..., Runnable]
TOKENS = 27
STEP = step([(0, 0, TOKENS)])
SEEN = ("int8", "bfloat16", "float32")


def product(layout: Layout, x: np.ndarray, bias: np.ndarray | None = None) -> OpModel:
    """x @ layout.T, x a table's rows."""
    model = OpModel()
    inputs = model.input("x", x)
    weight = Param(tuple(layout.shape), kind="matrix", name="weight")
    model.weight = weight  # type: ignore[attr-defined]
    model.tensors["weight"] = layout  # type: ignore[assignment]
    added = None if bias is None else model.param("bias", bias)
    model.call = lambda op: op.linear(inputs(op), weight, added)
    return model


def run(bound: Bound, model: OpModel, precision: Precision, tokens: int = TOKENS) -> np.ndarray:
    runnable = bound(model, precision, LIMITS)
    runnable.allocate_cache(1)
    return np.array(runnable.forward(step([(0, 0, tokens)])))


def numbers(case: QuantCase, rows: int, cols: int) -> tuple[Layout, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows * 1000 + cols)
    layout = case.make(rng, rows, cols)
    x = rng.standard_normal((40, cols)).astype(np.float32)
    x[3] = 0
    return layout, x, rng.standard_normal(rows).astype(np.float32)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_product_equals_the_reference(case: QuantCase, seen: str, runnable: Bound) -> None:
    for rows, cols in SIZES if seen == "int8" else SIZES[2::3]:
        layout, x, bias = numbers(case, rows, cols)
        model = product(layout, x, bias)
        precision = Precision(quantized=seen)
        expected = run(lambda m, p, n: NumpyRunnable(m, m.tensors, p, n), model, precision)
        got = run(runnable, model, precision)
        size = np.abs(x[:TOKENS]) @ np.abs(settled(layout).dequantize()).T + np.abs(bias)
        how = getattr(layout, "activation", None)
        if how is not None:  # what a zero adds to every column is taken off again
            size += abs((how.scale or 0) * how.zero) * np.abs(layout.dequantize()).sum(axis=1)
        # Rounding to a grid may fall to the other side of a tie where sums differ in their last bit.
        slack = 0.02 if isinstance(layout, Online) else 1e-5
        assert (np.abs(got - expected) <= slack * np.maximum(size, 1e-3)).all(), (rows, cols)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_what_a_checkpoint_states_holds_beside_floats(case: QuantCase, runnable: Bound) -> None:
    layout, x, bias = numbers(case, 33, 96)
    model = product(layout, x, bias)
    stated = run(runnable, model, Precision(quantized="float32", stated=True))
    own = getattr(layout, "activation", None) is not None
    expected = run(runnable, model, Precision(quantized="int8" if own else "float32"))
    np.testing.assert_array_equal(stated, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("seen", SEEN)
def test_a_row_does_not_depend_on_the_others(case: QuantCase, seen: str, runnable: Bound) -> None:
    layout, x, _ = numbers(case, 33, 257)
    model = product(layout, x)
    bound = runnable(model, Precision(quantized=seen), LIMITS)
    if not hasattr(bound, "isa"):
        pytest.skip("torch's own products depend on the number of rows")
    bound.allocate_cache(1)
    alone = np.array(bound.forward(step([(0, 0, 1)])))
    for tokens in (2, 3, 5, 8, 12, 13, 25, 40):
        together = np.array(bound.forward(step([(0, 0, tokens)])))
        np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_embedding_reads_the_same_numbers(case: QuantCase, runnable: Bound) -> None:
    layout, _, _ = numbers(case, 40, 100)
    model = OpModel()
    table = Param((40, 100), kind="table", name="table")
    model.table = table  # type: ignore[attr-defined]
    model.tensors["table"] = layout  # type: ignore[assignment]
    model.call = lambda op: op.embedding(op.inputs().token_ids, table)
    got = run(runnable, model, Precision(), 40)
    expected = settled(layout).dequantize()
    step_size = np.abs(expected).max() / (7 if getattr(layout, "bits", 8) == 4 else 127)
    bound = 1.01 * step_size if isinstance(layout, Online) else 1e-6
    assert np.abs(got - expected).max() <= bound
    assert (got != expected).mean() < 0.01 or not isinstance(layout, Online)


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("online")], ids=lambda c: c.name)
def test_slices_are_the_parts_of_the_whole(case: QuantCase) -> None:
    layout = case.make(np.random.default_rng(0), 20, 384)
    whole = layout.dequantize()
    np.testing.assert_array_equal(layout.slice(0, 3, 17).dequantize(), whole[3:17])
    np.testing.assert_array_equal(layout.take(np.array([5, 1])).dequantize(), whole[[5, 1]])
    for start, stop in ((128, 384), (0, 200), (16, 384), (7, 300), (256, 384)):
        np.testing.assert_array_equal(layout.slice(1, start, stop).dequantize(), whole[:, start:stop])


def test_rounding_leaves_less_error_than_the_plain_grid() -> None:
    x = (np.random.default_rng(0).standard_normal((64, 256)) * 0.05).astype(np.float32)
    groups = x.reshape(64, -1, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / 7
    plain = np.square(np.rint(groups / scale) * scale - groups).mean()
    ours = np.square(round_matrix(x, 4, 32).dequantize() - x).mean()
    assert ours < 0.85 * plain
    eight = np.square(round_matrix(x, 8, 128).dequantize() - x).mean()
    assert eight < 0.012 * ours


def test_numbers_on_a_grid_stay_as_they_are() -> None:
    codes = np.random.default_rng(1).integers(-7, 8, (8, 64)).astype(np.float32)
    codes[:, 0::32] = -8
    np.testing.assert_array_equal(round_matrix(codes / 64, 4, 32).dequantize(), codes / 64)
    np.testing.assert_array_equal(round_matrix(np.zeros((3, 40), np.float32), 4, 32).dequantize(), 0)


def test_activations_are_rounded_to_255_numbers_in_each_block() -> None:
    x = np.random.default_rng(2).standard_normal((3, 70)).astype(np.float32)
    rounded = round_int8(x)
    for start in range(0, 70, 32):
        part, block = rounded[:, start : start + 32], x[:, start : start + 32]
        largest = np.abs(block).max(axis=1, keepdims=True)
        assert (np.abs(part - block) <= largest / 254 * 1.001).all()
    np.testing.assert_array_equal(round_int8(np.zeros((1, 5), np.float32)), 0)


def test_layouts_refuse_parts_that_do_not_fit() -> None:
    scale = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="scale"):
        Int8(np.zeros((2, 96), np.int8), scale, 32)
    with pytest.raises(ValueError, match="exclude"):
        Int8(np.zeros((2, 64), np.int8), scale, 32, scale, scale)
    with pytest.raises(ValueError, match="bytes a row"):
        Int4Group(np.zeros((2, 31), np.uint8), 64, scale, 32)
