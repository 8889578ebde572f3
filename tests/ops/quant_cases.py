"""Quantized matrices of every layout, as layouts with random numbers of a checkpoint's kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from octavo.ops.layouts import Dense, Int4Group, Int8, Layout, Lut4, Online, pack4

Rng = np.random.Generator

NF4 = np.array(
    [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.3949175,
        -0.28444138,
        -0.18477343,
        -0.091050036,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0,
    ],
    np.float32,
)
"""Dettmers et al. 2023 (QLoRA), appendix E."""
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""OCP microscaling formats, e2m1."""


def _scales(rng: Rng, rows: int, groups: int, dtype: str) -> np.ndarray:
    return Dense.of(rng.uniform(0.002, 0.02, (rows, groups)).astype(np.float32), dtype).dequantize()


def int8(group: int, dtype: str = "float32", offset: str = "none") -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        groups = -(-cols // group)
        codes = rng.integers(-128, 128, (rows, cols)).astype(np.int8)
        scale = _scales(rng, rows, groups, dtype)
        zero = rng.integers(-128, 128, scale.shape).astype(np.float32) if offset == "zero" else None
        minimum = -_scales(rng, rows, groups, dtype) if offset == "minimum" else None
        return Int8(codes, scale, group, zero, minimum)

    return make


def int4(
    group: int, dtype: str = "float16", offset: str = "none", ordered: bool = False
) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        groups = -(-cols // group)
        codes = pack4(rng.integers(0, 16, (rows, cols)))
        scale = _scales(rng, rows, groups, dtype)
        zero = rng.integers(0, 17, scale.shape).astype(np.float32) if offset == "zero" else None
        minimum = -_scales(rng, rows, groups, dtype) * 4 if offset == "minimum" else None
        order = rng.permutation(cols).astype(np.int32) if ordered else None
        return Int4Group(codes, cols, scale, group, zero, minimum, order)

    return make


def lut4(group: int, table: np.ndarray, dtype: str = "float32") -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        scale = _scales(rng, rows, -(-cols // group), dtype)
        return Lut4(pack4(rng.integers(0, 16, (rows, cols))), cols, table, scale, group)

    return make


def online(bits: int, group: int, dtype: str) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        values = (rng.standard_t(5, (rows, cols)) * 0.03).astype(np.float32)
        return Online(Dense.of(values, dtype), bits, group)

    return make


@dataclass(frozen=True)
class QuantCase:
    name: str
    make: Callable[[Rng, int, int], Layout]


CASES = (
    QuantCase("int8-row", int8(1 << 20)),
    QuantCase("int8-32", int8(32, "float16")),
    QuantCase("int8-32-f32", int8(32)),
    QuantCase("int8-128-bf16", int8(128, "bfloat16")),
    QuantCase("int8-64-zero", int8(64, "float16", "zero")),
    QuantCase("int8-32-minimum", int8(32, "float32", "minimum")),
    QuantCase("int4-32", int4(32)),
    QuantCase("int4-64-bf16", int4(64, "bfloat16")),
    QuantCase("int4-128-f32", int4(128, "float32")),
    QuantCase("int4-32-zero", int4(32, "float16", "zero")),
    QuantCase("int4-128-zero-f32", int4(128, "float32", "zero")),
    QuantCase("int4-32-minimum", int4(32, "float16", "minimum")),
    QuantCase("int4-64-minimum-bf16", int4(64, "bfloat16", "minimum")),
    QuantCase("int4-64-order", int4(64, "float16", "zero", ordered=True)),
    QuantCase("lut4-mxfp4", lut4(32, FP4)),
    QuantCase("lut4-nf4", lut4(64, NF4)),
    QuantCase("online-int8-bf16", online(8, 128, "bfloat16")),
    QuantCase("online-int8-f32", online(8, 32, "float32")),
    QuantCase("online-int4-bf16", online(4, 32, "bfloat16")),
    QuantCase("online-int4-f16", online(4, 64, "float16")),
)
SIZES = ((1, 1), (5, 3), (16, 32), (17, 33), (40, 100), (48, 160), (33, 257), (96, 384))
"""(rows, cols): below, at and beyond a tile, a block, two blocks and a group."""
