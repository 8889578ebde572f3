"""The reference itself, against formulas written out by hand on small numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from op_cases import BLOCK_SIZE, OpModel, step

from octavo.ops.contract import AttentionSpec, Batch, Param, Precision, Rope
from octavo.ops.layouts import Dense, bf16_to_f32, f32_to_bf16
from octavo.ops.reference import NumpyOps, PagedCache, fetch, inverse_frequencies, store

SIX = step([(0, 0, 6)])


def ops(batch: Batch = SIX, cache: PagedCache | None = None, **weights: list[float]) -> NumpyOps:
    tensors = {name: Dense(np.array(values, np.float32), "float32") for name, values in weights.items()}
    return NumpyOps(tensors, Precision(), cache, batch)


def test_norms() -> None:
    op = ops(w=[2.0, 3.0], b=[0.5, -0.5])
    x = np.array([[3.0, 4.0, 1.0, 0.0]], np.float32)
    w, b = Param((2,), name="w"), Param((2,), name="b")
    root, unit = math.sqrt(12.5), math.sqrt(0.5)
    np.testing.assert_allclose(op.rms_norm(x, w, 0.0), [[6 / root, 12 / root, 2 / unit, 0]], rtol=1e-6)
    np.testing.assert_allclose(op.rms_norm(x, w, 0.0, 1.0), [[9 / root, 16 / root, 3 / unit, 0]], rtol=1e-6)
    np.testing.assert_allclose(op.layer_norm(x, w, b, 0.0), [[-1.5, 2.5, 2.5, -3.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("relu", lambda x: max(x, 0.0)),
        ("relu2", lambda x: max(x, 0.0) ** 2),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
    ],
)
def test_activations(kind: str, formula: object) -> None:
    x = np.linspace(-4, 4, 33, dtype=np.float32)[None]
    expected = [[formula(float(v)) for v in x[0]]]  # type: ignore[operator]
    np.testing.assert_allclose(ops().activation(x, kind), expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(ops().gated(np.hstack([x, x]), kind), expected * x, rtol=2e-6, atol=1e-6)


def test_rotation_turns_pairs_by_position() -> None:
    op = ops(step([(0, 3, 2)]))
    x = np.array([[1.0, 2.0, 3.0, 4.0, 9.0]] * 2, np.float32)
    for interleaved, pairs in ((False, ((0, 2), (1, 3))), (True, ((0, 1), (2, 3)))):
        rope = Rope((1.0, 0.25), magnitude=2.0, interleaved=interleaved)
        got = op.rotate(x, op.rope_table(rope), 5, interleaved)
        for row, position in enumerate((3, 4)):
            for (a, b), freq in zip(pairs, rope.inv_freq, strict=True):
                turned = complex(x[row, a], x[row, b]) * 2 * np.exp(1j * position * freq)
                assert complex(got[row, a], got[row, b]) == pytest.approx(turned, rel=1e-6)
            assert got[row, 4] == 9.0


def test_frequencies_switch_by_length() -> None:
    long = Rope((1.0,), 1.0, switch_tokens=8, long_inv_freq=(0.5,), long_magnitude=3.0)
    assert inverse_frequencies(long, 8) == (np.array([1.0], np.float32), 1.0)
    assert inverse_frequencies(long, 9) == (np.array([0.5], np.float32), 3.0)
    dynamic = Rope((1.0, 0.01), switch_tokens=8, dynamic_factor=2.0)
    base = 10000 * (2 * 12 / 8 - 1) ** 2
    np.testing.assert_allclose(inverse_frequencies(dynamic, 12)[0], [1.0, base**-0.5], rtol=1e-6)


@pytest.mark.parametrize(("window", "seen"), [(None, (0, 1, 2)), (2, (1, 2)), (1, (2,))])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_attention_is_a_weighted_mean_of_what_is_seen(
    window: int | None, seen: tuple[int, ...], cap: float | None
) -> None:
    spec = AttentionSpec(0, 2, 1, 2, 0.7, window, cap)
    cache = PagedCache([spec], 24, BLOCK_SIZE, "float32")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, width)).astype(np.float32) for width in (4, 2, 2))
    got = ops(step([(1, 0, 3)]), cache).attention(q, k, v, spec)
    for head in range(2):
        scores = [0.7 * float(q[2, 2 * head : 2 * head + 2] @ k[j]) for j in seen]
        if cap:
            scores = [cap * math.tanh(s / cap) for s in scores]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(got[2, 2 * head : 2 * head + 2], weights @ v[list(seen)], rtol=1e-5)


def test_linear_rounds_its_input_when_asked() -> None:
    model = OpModel()
    weight = model.param("w", np.eye(3), kind="matrix")
    x = np.array([[1.00390625, 1.005859375, -3.14159]], np.float32)
    rounded = NumpyOps(model.tensors, Precision(activation="bfloat16"), None, SIX).linear(x, weight)
    np.testing.assert_array_equal(rounded, [[1.0, 1.0078125, -3.140625]])
    np.testing.assert_array_equal(NumpyOps(model.tensors, Precision(), None, SIX).linear(x, weight), x)


def test_bfloat16_is_rounded_to_even_and_keeps_what_is_no_number() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, -np.inf, 3.4e38], np.float32)
    expected = np.array([1.0, 1.0, 1.015625, -0.0, np.inf, -np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), expected)
    assert np.isnan(bf16_to_f32(f32_to_bf16(np.array([np.nan], np.float32))))
    np.testing.assert_array_equal(fetch(store(values[:4], "bfloat16"), "bfloat16"), expected[:4])


def test_what_cannot_be_says_so() -> None:
    x = np.zeros((6, 4), np.float32)
    with pytest.raises(ValueError, match="do not add up to 4"):
        ops().split(x, (1, 2))
    with pytest.raises(ValueError, match="allocate_cache"):
        ops().attention(x, x, x, AttentionSpec(0, 1, 1, 4, 1.0))
    with pytest.raises(ValueError, match="dynamic_factor"):
        inverse_frequencies(Rope((1.0,), switch_tokens=1), 2)
