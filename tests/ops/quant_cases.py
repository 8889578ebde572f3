"""Quantized matrices of every layout, as layouts with random numbers of a checkpoint's kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from octavo.ops.layouts import (
    Activation,
    Dense,
    Fp8,
    Int4Group,
    Int8,
    IntBits,
    Layout,
    Lut4,
    Online,
    Scale,
    SubScales,
    pack4,
)

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


def _sub_scales(rng: Rng, rows: int, groups: int, per: int, sign: int = 1) -> SubScales:
    """As the K formats have them: 6 bits times a float16."""
    codes = rng.integers(0, 64, (rows, groups)).astype(np.int8)
    return SubScales(codes, sign * _scales(rng, rows, -(-groups // per), "float16") / 32, per)


def int8(group: int, dtype: str = "float32", offset: str = "none") -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        groups = -(-cols // group)
        codes = rng.integers(-128, 128, (rows, cols)).astype(np.int8)
        scale = _scales(rng, rows, groups, dtype)
        zero = rng.integers(-128, 128, scale.shape).astype(np.float32) if offset == "zero" else None
        minimum = -_scales(rng, rows, groups, dtype) if offset == "minimum" else None
        return Int8(codes, scale, group, zero, minimum)

    return make


def w8a8(activation: Activation) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        codes = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        return Int8(codes, _scales(rng, rows, 1, "float32"), cols, activation=activation)

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


def sub_scaled(bits: int, group: int, minimum: bool = False) -> Callable[[Rng, int, int], Layout]:
    """Q2_K .. Q6_K: units for 256 columns."""

    def make(rng: Rng, rows: int, cols: int) -> Layout:
        groups, per = -(-cols // group), 256 // group
        scale = _sub_scales(rng, rows, groups, per)
        least: Scale | None = _sub_scales(rng, rows, groups, per, -1) if minimum else None
        codes = rng.integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
        if bits == 4:
            return Int4Group(pack4(codes), cols, scale, group, minimum=least)
        return IntBits(codes, bits, scale, group, minimum=least)

    return make


def bits(
    bits: int, group: int, dtype: str = "float16", offset: str = "none"
) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        scale = _scales(rng, rows, -(-cols // group), dtype)
        zero = rng.integers(0, 1 << bits, scale.shape).astype(np.float32) if offset == "zero" else None
        minimum = -_scales(rng, *scale.shape, dtype) * 4 if offset == "minimum" else None
        codes = rng.integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
        return IntBits(codes, bits, scale, group, zero, minimum)

    return make


def lut4(
    group: int, table: np.ndarray, dtype: str = "float32", factor: float = 1.0
) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        scale = _scales(rng, rows, -(-cols // group), dtype)
        return Lut4(pack4(rng.integers(0, 16, (rows, cols))), cols, table, scale, group, factor)

    return make


def fp8(kind: Literal["e4m3", "e5m2"], group: int) -> Callable[[Rng, int, int], Layout]:
    def make(rng: Rng, rows: int, cols: int) -> Layout:
        codes = rng.integers(0, 0x7C, (rows, cols)) | rng.integers(0, 2, (rows, cols)) << 7
        scale = _scales(rng, rows, -(-cols // group), "float32")
        return Fp8(codes.astype(np.uint8), kind, scale, group)

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
    QuantCase("w8a8-token", w8a8(Activation())),
    QuantCase("w8a8-token-zero", w8a8(Activation(symmetric=False))),
    QuantCase("w8a8-fixed", w8a8(Activation(scale=0.021))),
    QuantCase("w8a8-fixed-zero", w8a8(Activation(symmetric=False, scale=0.017, zero=-11))),
    QuantCase("int8-16", int8(16, "float16")),
    QuantCase("int8-16-zero", int8(16, "float32", "zero")),
    QuantCase("int8-100", int8(100)),
    QuantCase("int4-16-minimum", int4(16, "bfloat16", "minimum")),
    QuantCase("int4-48", int4(48)),
    QuantCase("int4-10-order", int4(10, "float16", "zero", ordered=True)),
    QuantCase("int4-row", int4(1 << 20)),
    QuantCase("int4-sub-32-minimum", sub_scaled(4, 32, minimum=True)),
    QuantCase("int4-sub-16-minimum", sub_scaled(4, 16, minimum=True)),
    QuantCase("int4-sub-16", sub_scaled(4, 16)),
    QuantCase("bits5-32", bits(5, 32)),
    QuantCase("bits5-16-zero", bits(5, 16, "float16", "zero")),
    QuantCase("bits5-32-minimum", bits(5, 32, "float16", "minimum")),
    QuantCase("bits5-sub-32-minimum", sub_scaled(5, 32, minimum=True)),
    QuantCase("bits6-128", bits(6, 128, "float32")),
    QuantCase("bits6-sub-16", sub_scaled(6, 16)),
    QuantCase("lut4-nvfp4", lut4(16, FP4, "bfloat16", factor=0.37)),
    QuantCase("fp8-e4m3-128", fp8("e4m3", 128)),
    QuantCase("fp8-e5m2-row", fp8("e5m2", 1 << 20)),
    QuantCase("online-int8-bf16", online(8, 128, "bfloat16")),
    QuantCase("online-int8-f32", online(8, 32, "float32")),
    QuantCase("online-int4-bf16", online(4, 32, "bfloat16")),
    QuantCase("online-int4-f16", online(4, 64, "float16")),
)
SIZES = ((1, 1), (5, 3), (16, 32), (17, 33), (40, 100), (48, 160), (33, 257), (96, 384))
"""(rows, cols): below, at and beyond a tile, a block, two blocks and a group."""
