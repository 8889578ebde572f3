"""A matrix of random numbers in every weight layout that the kernels take, as checkpoints have it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Param, Precision
from octavo.ops.layouts import (
    F32,
    Activation,
    Dense,
    Fp8,
    Int4Group,
    Int8,
    IntBits,
    Layout,
    Lut4,
    Online,
    SubScales,
)
from octavo.quant.small_floats import E2M1
from octavo.weights.dummy import DummyWeights

Make = Callable[[np.random.Generator, int, int], Layout]
"""(random numbers, rows, columns) -> a matrix."""


def _scale(rng: np.random.Generator, rows: int, cols: int, group: int) -> F32:
    """One for each group, in bfloat16's precision."""
    values = rng.uniform(0.002, 0.02, (rows, -(-cols // group))).astype(np.float32)
    return Dense.of(values, "bfloat16").dequantize()


def _codes(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.uint8]:
    """Random bytes."""
    return np.frombuffer(rng.bytes(rows * cols), np.uint8).reshape(rows, cols)


def _dense(dtype: str) -> Make:
    return lambda rng, rows, cols: DummyWeights(dtype).make(Param((rows, cols), kind="matrix", name="w"))


def _online(bits: int, group: int) -> Make:
    return lambda rng, rows, cols: Online(_dense("bfloat16")(rng, rows, cols), bits, group)  # type: ignore[arg-type]


def _int8(group: int | None, activation: Activation | None) -> Make:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Layout:
        codes = _codes(rng, rows, cols).view(np.int8)
        return Int8(codes, _scale(rng, rows, cols, group or cols), group or cols, activation=activation)

    return make


def _int4(group: int, join: str) -> Make:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Layout:
        scale = _scale(rng, rows, cols, group)
        zero = rng.integers(0, 16, scale.shape).astype(np.float32) if join == "zero" else None
        minimum = -4 * scale if join == "minimum" else None
        return Int4Group(_codes(rng, rows, (cols + 1) // 2), cols, scale, group, zero, minimum)

    return make


def _bits(bits: int, group: int) -> Make:
    """As Q5_K and Q6_K: scales of 6 bits, times a unit for 256 columns."""

    def make(rng: np.random.Generator, rows: int, cols: int) -> Layout:
        groups, per = -(-cols // group), 256 // group
        unit = _scale(rng, rows, -(-groups // per), 1)
        scale = SubScales(rng.integers(1, 64, (rows, groups)).astype(np.int8), unit / np.float32(32), per)
        return IntBits(_codes(rng, rows, cols) & np.uint8((1 << bits) - 1), bits, scale, group)

    return make


def _lut4(table: F32, group: int) -> Make:
    return lambda rng, rows, cols: Lut4(
        _codes(rng, rows, (cols + 1) // 2), cols, table, _scale(rng, rows, cols, group), group
    )


def _fp8(rng: np.random.Generator, rows: int, cols: int) -> Layout:
    # 0x7f and 0xff are no numbers.
    return Fp8(_codes(rng, rows, cols) & np.uint8(0xF7), "e4m3", _scale(rng, rows, cols, 128), 128)


FORMATS: dict[str, Make] = {
    "float32": _dense("float32"),
    "float16": _dense("float16"),
    "bfloat16": _dense("bfloat16"),
    "int8": _online(8, 128),
    "int8-w8a8": _int8(None, Activation()),
    "int8-q8_0": _int8(32, None),
    "int4": _online(4, 32),
    "int4-awq": _int4(128, "zero"),
    "int4-q4_1": _int4(32, "minimum"),
    "int5": _bits(5, 32),
    "int6": _bits(6, 16),
    "lut4-mxfp4": _lut4(E2M1, 32),
    "lut4-nf4": _lut4(np.linspace(-1, 1, 16, dtype=np.float32) ** 3, 64),
    "fp8": _fp8,
}
"""Name on the command line to what makes it; every layout of octavo.ops is here (a test says so)."""

QUICK = ("bfloat16", "int8", "int4", "lut4-mxfp4")
"""What is timed when nothing is asked for: the four ways in which the kernels multiply."""


def arithmetic(layout: Layout, precision: Precision) -> str:
    """What the products are made of: float32, bfloat16 or int8 (octavo.ops.rounding.round_input)."""
    if isinstance(layout, Dense | Fp8):
        return precision.activation
    return precision.quantized
