"""Attention over contexts of several segments: one answer, whoever computes which part of it.

A row's result may depend on its position and its own keys alone: not on the chunks of its prompt, on the
other sequences of a step, on the number of threads, or on what stands in slots that it does not see.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from op_cases import OpModel

from octavo import _native
from octavo.build.bind import bind
from octavo.layers.attention import alibi_slopes
from octavo.ops.contract import AttentionSpec, Batch, Limits, Precision, Runnable
from octavo.ops.reference import NumpyRunnable
from octavo.ops.rounding import round_e4m3

F32 = NDArray[Any]
LENGTH, BLOCK = 1300, 16
BLOCKS_EACH = -(-LENGTH // BLOCK)
LIMITS = Limits(tokens=2 * LENGTH, sequences=3, logit_rows=2 * LENGTH, block_size=BLOCK, max_model_len=2048)
PRECISIONS = (
    Precision(),
    Precision("bfloat16", "bfloat16"),
    Precision(cache="float16"),
    Precision(cache="int8"),
    Precision("bfloat16", "int8"),
    Precision("bfloat16", "fp8_e4m3"),
)
NAMES = ("f32", "bf16", "f16", "int8", "int8-rounded", "fp8")
SPECS = (
    AttentionSpec(0, heads=6, kv_heads=2, head_dim=24, scale=0.3),
    AttentionSpec(0, heads=3, kv_heads=1, head_dim=40, scale=0.3, window=700, softcap=5.0),
    AttentionSpec(0, heads=4, kv_heads=2, head_dim=16, scale=0.3, slopes=alibi_slopes(4, 12.0)),
)
IDS = ("full", "window", "alibi")


def model_of(spec: AttentionSpec, tokens: int = 2 * LENGTH) -> OpModel:
    """Token id t reads row t of random queries, keys and values: two sequences of LENGTH tokens."""
    model = OpModel(5)
    q = model.input("q", model.noise(tokens, spec.heads * spec.head_dim))
    k, v = (model.input(n, model.noise(tokens, spec.kv_heads * spec.head_dim)) for n in "kv")
    model.specs = (spec,)
    sinks = model.param("sinks", model.noise(spec.heads)) if spec.slopes else None
    model.call = lambda op: op.attention(q(op), k(op), v(op), spec, sinks)
    return model


def step(*spans: tuple[int, int, int]) -> Batch:
    """Spans (sequence, first, end); the sequences' blocks alternate."""
    positions = np.concatenate([np.arange(first, end) for _, first, end in spans]).astype(np.int32)
    ids = np.concatenate([s * LENGTH + np.arange(first, end) for s, first, end in spans]).astype(np.int32)
    counts = [end - first for _, first, end in spans]
    return Batch(
        token_ids=ids,
        positions=positions,
        rope_lens=positions + 1,
        seq_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array([end for _, _, end in spans], np.int32),
        block_tables=np.array([range(s, 2 * BLOCKS_EACH, 2) for s, _, _ in spans], np.int32),
        logit_rows=np.arange(len(ids), dtype=np.int32),
    )


def native(spec: AttentionSpec, precision: Precision, isa: str, threads: int) -> Runnable:
    model = model_of(spec)
    tensors = [(param, model.tensors[param.name]) for _, param in model.named_params()]
    runnable = bind(model, tensors, precision, LIMITS, "native", threads=threads, isa=isa)
    runnable.allocate_cache(2 * BLOCKS_EACH)
    return runnable


def rows(runnable: Runnable, *steps: Batch) -> dict[int, NDArray[np.float32]]:
    """Each token's result, by token id."""
    results: dict[int, NDArray[np.float32]] = {}
    for batch in steps:
        results.update(zip(batch.token_ids.tolist(), np.array(runnable.forward(batch)), strict=True))
    return results


WHOLE = (step((0, 0, LENGTH)),)
"""One prompt in one step."""
CUT = (
    step((0, 0, 37)),
    step((0, 37, 900), (1, 0, 5)),
    step((1, 5, 600), (0, 900, 901)),
    step((0, 901, 1290)),
    *(step((0, i, i + 1)) for i in range(1290, 1294)),
    *(step((1, 600 + i, 601 + i), (0, 1294 + i, 1295 + i)) for i in range(3)),
    step((0, 1297, LENGTH)),
)
"""The same prompt in chunks, single tokens and a few at once, with and without company."""


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=NAMES)
def test_parts_do_not_show(spec: AttentionSpec, precision: Precision, isa: str) -> None:
    expected = rows(native(spec, precision, isa, threads=1), *WHOLE)
    for threads in (1, 3):
        got = rows(native(spec, precision, isa, threads), *CUT)
        for token, row in expected.items():
            np.testing.assert_array_equal(got[token], row)


@pytest.mark.parametrize("precision", PRECISIONS[1::2], ids=NAMES[1::2])
def test_a_context_of_8k_cut_among_threads(precision: Precision) -> None:
    """The last token alone, its keys spread over the threads, is what it is at the end of a prompt's part."""
    length, part, spec = 8000, 1000, AttentionSpec(0, heads=2, kv_heads=1, head_dim=64, scale=0.1)
    model = model_of(spec, length)
    tensors = [(param, model.tensors[param.name]) for _, param in model.named_params()]
    limits = Limits(tokens=part, sequences=1, logit_rows=part, block_size=BLOCK, max_model_len=length)

    def tokens(first: int, end: int) -> Batch:
        at = np.arange(first, end, dtype=np.int32)
        table = np.arange(length // BLOCK, dtype=np.int32)[None]
        count = np.array([0, end - first], np.int32)
        return Batch(at, at, at + 1, count, at[-1:] + 1, table, at[: end - first] - first)

    results = []
    for threads in (1, 2, 3):
        runnable = bind(model, tensors, precision, limits, "native", threads=threads, isa=_native.isas()[0])
        runnable.allocate_cache(length // BLOCK)
        whole = rows(runnable, *(tokens(at, at + part) for at in range(0, length, part)))
        alone = rows(runnable, tokens(length - 1, length))
        np.testing.assert_array_equal(alone[length - 1], whole[length - 1])
        results.append(alone[length - 1])
    np.testing.assert_array_equal(results[1:], results[:1] * 2)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("cache", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [63, 64, 80])
def test_wide_heads_of_8_bits_equal_the_reference(head_dim: int, cache: str, isa: str) -> None:
    spec = AttentionSpec(0, heads=4, kv_heads=2, head_dim=head_dim, scale=0.1)
    model, batch = model_of(spec), step((0, 0, 90))
    reference = NumpyRunnable(model, model.tensors, Precision(cache=cache), LIMITS)
    reference.allocate_cache(2 * BLOCKS_EACH)
    expected = rows(reference, batch)
    for dense, bound in (("float32", 1e-5), ("bfloat16", 0.03)):
        got = rows(native(spec, Precision(dense, cache), isa, threads=2), batch)
        assert max(float(np.abs(got[t] - row).max()) for t, row in expected.items()) <= bound


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_long_contexts_equal_the_reference(spec: AttentionSpec, isa: str) -> None:
    model = model_of(spec)
    reference = NumpyRunnable(model, model.tensors, Precision(), LIMITS)
    reference.allocate_cache(2 * BLOCKS_EACH)
    expected = rows(reference, *WHOLE)
    got = rows(native(spec, Precision(), isa, threads=2), *CUT)
    worst = max(float(np.abs(got[token] - row).max()) for token, row in expected.items())
    assert worst <= 1e-5


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("precision", PRECISIONS, ids=NAMES)
def test_numbers_left_in_a_slot_touch_nothing(precision: Precision, isa: str) -> None:
    """A block full of NaN from another sequence, taken over by one that fills a part of it."""
    spec: Any = AttentionSpec(0, heads=2, kv_heads=1, head_dim=24, scale=0.3, window=40)
    model = model_of(spec)
    for name in "kv":
        model.tensors[name].data[LENGTH : LENGTH + 200] = np.nan
    tensors = [(param, model.tensors[param.name]) for _, param in model.named_params()]
    runnable = bind(model, tensors, precision, LIMITS, "native", threads=2, isa=isa)
    runnable.allocate_cache(2 * BLOCKS_EACH)
    steps = (step((0, 0, 7)), step((0, 7, 8)), step((0, 8, 71)), step((0, 71, 100)))
    expected = rows(runnable, *steps)
    poison = step((1, 0, 200))
    poison.block_tables[:] = np.arange(0, 2 * BLOCKS_EACH, 2)
    runnable.forward(poison)
    got = rows(runnable, *steps)
    for token, row in expected.items():
        np.testing.assert_array_equal(got[token], row)


def rounding_bound(spec: AttentionSpec, cache: str, q: F32, k: F32, v: F32) -> float:
    """How far a result may be from that of an unrounded cache.

    A code is at most half a step away: |x| / 16 + 2^-10 for fp8 e4m3, the head's largest / 254 for int8. A
    score is then off by at most d = scale * sum |q| |error of k|, a softmax weight by the factor e^(2d), a
    result by the values' error plus (e^(2d) - 1) * the largest value. Query and weights are not rounded.
    """

    def error(x: F32) -> F32:
        if cache == "int8":
            return np.broadcast_to(np.abs(x).max(axis=-1, keepdims=True) / 254, x.shape)
        return np.abs(x) / 16 + 2.0**-10

    group = spec.heads // spec.kv_heads
    heads = (-1, spec.kv_heads, spec.head_dim)
    moved = np.repeat(error(k.reshape(heads)).max(axis=0), group, axis=0)
    d = spec.scale * float((np.abs(q.reshape(-1, spec.heads, spec.head_dim)) * moved).sum(axis=-1).max())
    return float(error(v.reshape(heads)).max()) + (math.exp(2 * d) - 1) * float(np.abs(v).max())


@pytest.mark.parametrize("cache", ["int8", "fp8_e4m3"])
def test_entries_of_8_bits_stay_within_their_rounding(cache: str) -> None:
    spec = AttentionSpec(0, heads=4, kv_heads=2, head_dim=32, scale=0.02)
    model = model_of(spec)
    batch = step((0, 0, 200))
    results = {
        name: rows(native(spec, Precision(cache=name), _native.isas()[0], 2), batch)
        for name in ("float32", cache)
    }
    q, k, v = (np.asarray(model.tensors[name].data[:200]) for name in "qkv")
    worst = max(float(np.abs(results["float32"][t] - results[cache][t]).max()) for t in range(200))
    assert 0 < worst <= rounding_bound(spec, cache, q, k, v)


def test_fp8_is_saturated_and_rounds_to_even() -> None:
    values = np.array(
        [1.0625, 1.1875, 448.0, 470.0, -1e9, np.inf, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 0.0], np.float32
    )
    expected = np.array([1.0, 1.25, 448.0, 448.0, -448.0, 448.0, 2.0**-9, 0.0, 2.0**-8, 0.0], np.float32)
    np.testing.assert_array_equal(round_e4m3(values), expected)
