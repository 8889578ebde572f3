"""Rounding on the way into quantized products: the slow twin of csrc/kernels_quant and kernels_round."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Precision
from octavo.ops.layouts import (
    BLOCK,
    Activation,
    Dense,
    Experts,
    Fp8,
    Int4Group,
    Int8,
    Layout,
    Lut4,
    Online,
    Stack,
    bf16_to_f32,
    byte_run,
    f32_to_bf16,
    input_block,
    input_order,
    pack4,
)

F32 = NDArray[Any]


def round_input(x: F32, layout: Layout, precision: Precision) -> F32:
    """What a matrix sees of its input x [n, cols], as float32.

    8-bit floats see what dense matrices do. Where others see int8, or always with `precision.stated`, an
    int8 matrix that says how its checkpoint rounds inputs sees that. Ask for each part of a Stack by itself.
    """
    seen = precision.activation if isinstance(layout, Dense | Fp8) else precision.quantized
    if isinstance(layout, Int8) and layout.activation and (precision.stated or seen == "int8"):
        return round_activation(x, layout.activation)
    if seen != "int8":
        return bf16_to_f32(f32_to_bf16(x)) if seen == "bfloat16" else x
    if isinstance(layout, Online) and layout.bits == 8:
        return round_int8(x, byte_run(layout.group, layout.shape[1]))
    if isinstance(layout, Dense | Online | Stack | Experts):
        return round_int8(x)
    order, block = input_order(layout), input_block(layout)
    if order is None:
        return round_int8(x, block)
    there = order >= 0
    stored = np.where(there, x[:, order], np.float32(0))
    out = np.empty_like(x)
    out[:, order[there]] = round_int8(stored, block)[:, there]
    return out


def round_table(layout: Layout, precision: Precision) -> Layout:
    """The matrix that products take: a table of 4-bit codes meets int8 inputs with entries of two bytes."""
    if isinstance(layout, Lut4) and precision.quantized == "int8":
        return layout.met_by_int8()
    return layout


def round_activation(x: F32, how: Activation) -> F32:
    """x as W8A8 checkpoints see it: scale * (code - zero), codes -128 .. 127."""
    if how.scale is not None:
        scale, zero = np.float32(how.scale), np.float32(how.zero)
    elif how.symmetric:
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127.5)
        zero = np.float32(0)
    else:
        low = np.minimum(x.min(axis=1, keepdims=True), np.float32(0))
        high = np.maximum(x.max(axis=1, keepdims=True), np.float32(0))
        scale = (high - low) / np.float32(255)
        zero = np.clip(np.rint(-128 - low / np.where(scale > 0, scale, 1)), -128, 127).astype(np.float32)
    codes = np.clip(np.rint(x / np.where(scale > 0, scale, np.float32(1)) + zero), -128, 127)
    return np.asarray(scale * (codes - zero), np.float32)


def round_int8(x: F32, block: int = BLOCK) -> F32:
    """Blocks of `block` columns: scale = largest / 127, the nearest of 255 numbers, ties to even."""
    cols = x.shape[1]
    blocks = np.pad(x, ((0, 0), (0, -cols % block))).reshape(x.shape[0], -1, block).astype(np.float32)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.float32(127) / np.where(most > 0, most, np.float32(1))
    codes = np.rint(blocks * np.where(most > 0, inverse, np.float32(0)))
    values: F32 = (codes * (most / np.float32(127))).reshape(x.shape[0], -1)[:, :cols]
    return values


def cache_codes(values: F32, dtype: str) -> tuple[F32, F32]:
    """8-bit entries of the KV cache for values [..., head_dim]: their numbers, and each run's scale [...].

    int8: scale = largest / 127, codes to the nearest, ties to even; a run with a number that is none has the
    scale NaN. fp8_e4m3: see :func:`round_e4m3`, scale 1.
    """
    if dtype == "fp8_e4m3":
        return round_e4m3(values), np.ones(values.shape[:-1], np.float32)
    plain: F32 = np.asarray(np.isfinite(values).all(axis=-1))
    most = np.where(plain, np.abs(np.where(plain[..., None], values, 0)).max(axis=-1), np.float32(0))
    inverse = np.where(most > 0, np.float32(127) / np.where(most > 0, most, np.float32(1)), np.float32(0))
    codes = np.rint(np.where(plain[..., None], values, 0) * inverse[..., None])
    return codes.astype(np.float32), np.where(plain, most / np.float32(127), np.nan).astype(np.float32)


def round_e4m3(values: F32) -> F32:
    """To the nearest number of fp8 e4m3 (three bits of fraction, from 2^-9 on), ties to even, at most 448."""
    size = np.minimum(np.abs(values), np.float32(448))
    step = np.exp2(np.maximum(np.frexp(size)[1] - 1, -6) - 3).astype(np.float32)
    rounded: F32 = np.copysign(np.rint(size / step) * step, values)
    return rounded


def round_matrix(values: F32, bits: int, group: int) -> Int8 | Int4Group:
    """Round [rows, cols] to 8 or 4 bits with one bfloat16 scale for each `group` columns of a row.

    Several grids are tried in each group, around the one whose end is the number of largest size; for each
    the best scale is (sum x q) / (sum q q), and the one that leaves the least squared error wins.
    """
    rows, cols = values.shape
    groups = -(-cols // group)
    x = np.pad(values, ((0, 0), (0, groups * group - cols))).reshape(rows, groups, group).astype(np.float32)
    low, high, tries, step = (-127, 127, 5, 0.5) if bits == 8 else (-8, 7, 19, 0.1)
    scale = bf16_to_f32(f32_to_bf16(best_scale(x, low, high, tries, step)))
    inverse = np.where(scale != 0, 1 / np.where(scale != 0, scale, 1), 0).astype(np.float32)
    codes = np.clip(np.rint(x * inverse[..., None]), low, high).reshape(rows, -1)[:, :cols]
    if bits == 8:
        return Int8(codes.astype(np.int8), scale, group)
    return Int4Group(pack4((codes + 8).astype(np.uint8)), cols, scale, group)


def best_scale(x: F32, low: int, high: int, tries: int, step: float) -> F32:
    """[rows, groups] for x [rows, groups, group]."""
    most, least = x.max(axis=-1), x.min(axis=-1)
    far = np.where(most > -least, most, least)
    end = np.where(far != 0, far, np.float32(1))
    best, best_gain = np.zeros_like(end), np.zeros_like(end)
    for i in range(tries):
        reach = np.float32(low) + np.float32(step) * np.float32(i - tries // 2)
        q = np.clip(np.rint(x * (reach / end)[..., None]), low, high)
        xq, qq = (x * q).sum(axis=-1, dtype=np.float32), (q * q).sum(axis=-1, dtype=np.float32)
        some = np.maximum(qq, np.float32(1))
        gain = xq * xq / some
        best, best_gain = np.where(gain > best_gain, xq / some, best), np.maximum(gain, best_gain)
    return best
