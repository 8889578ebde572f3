"""Quantized modules written the slow way, from the formats' descriptions, and the numbers they stand for.

A writer takes a generator and a shape and gives `(tensors by suffix, values [rows, cols])`. Streams of bits
are built as one whole number of any length, which knows nothing of words.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Rng = np.random.Generator
Module = tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def words(codes: list[int], bits: int, count: int) -> list[int]:
    """`count` words of 32 bits, as int32, that hold the codes one after another, the first lowest."""
    whole = sum(code << (bits * i) for i, code in enumerate(codes))
    return [((whole >> (32 * i) & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000 for i in range(count)]


def along_rows(codes: np.ndarray[Any, Any], bits: int, minus: int = 0) -> np.ndarray[Any, Any]:
    """[n, width] -> int32 [n, words]. `minus` is taken off the packed row as version 1 of GPTQ does: off each
    word by itself, with what one field borrows of the next.
    """
    count = -(-codes.shape[1] * bits // 32)
    rows = [words([int(c) for c in row], bits, count) for row in codes]
    if minus:
        rows = [[((w - minus) % 2**32 ^ 0x80000000) - 0x80000000 for w in row] for row in rows]
    return np.array(rows, np.int64).astype(np.int32)


def grid(rng: Rng, rows: int, cols: int, bits: int, group: int, zeros: bool) -> tuple[Any, Any, Any]:
    """(codes [rows, cols], scale float16 [rows, groups], zero [rows, groups])."""
    groups = -(-cols // group)
    codes = rng.integers(0, 1 << bits, (rows, cols))
    scale = rng.uniform(0.5, 2, (rows, groups)).astype(np.float16) / np.float16(cols**0.5 * (1 << (bits - 2)))
    low, high = (1, 1 << bits) if zeros else (1 << (bits - 1), (1 << (bits - 1)) + 1)
    return codes, scale, rng.integers(low, high, (rows, groups))


def numbers(codes: Any, scale: Any, zero: Any, group_of: Any) -> np.ndarray[Any, Any]:
    """scale * (code - zero), each number by itself in float64, then float32."""
    return ((codes - zero[:, group_of]) * scale.astype(np.float64)[:, group_of]).astype(np.float32)


def gptq(
    rng: Rng,
    rows: int,
    cols: int,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
    second: bool = False,
    swapped: bool = False,
) -> Module:
    """`second`: version 2. `swapped`: 3-bit zero points as GPTQModel once took its constants off them."""
    group = cols if group == -1 else group
    codes, scale, zero = grid(rng, rows, cols, bits, group, not symmetric)
    group_of = np.arange(cols) // group
    if act_order:
        group_of = group_of[rng.permutation(cols)]
    if bits == 3 and not second and not swapped:
        qzeros = along_rows((zero.T - 1) & 7, 3)
    elif swapped:
        qzeros = along_rows(zero.T, 3).view(np.uint32)
        constants = [sum(1 << at for at in range(first, 32, 3)) for first in (2, 1, 0)]
        qzeros = (qzeros - np.resize(np.array(constants, np.uint32), qzeros.shape[1])).view(np.int32)
    else:
        minus = 0 if second else sum(1 << at for at in range(0, 32, bits))
        qzeros = along_rows(zero.T, bits, minus)
    tensors = {
        "qweight": np.ascontiguousarray(along_rows(codes, bits).T),
        "qzeros": qzeros,
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": group_of.astype(np.int32),
    }
    return tensors, numbers(codes, scale, zero, group_of)


def awq(rng: Rng, rows: int, cols: int, *, group: int = 64, gemv: bool = False) -> Module:
    """Both packings of 4 bits."""
    group = cols if group == -1 else group
    codes, scale, zero = grid(rng, rows, cols, 4, group, True)
    values = numbers(codes, scale, zero, np.arange(cols) // group)
    if gemv:
        room = -(-scale.shape[1] // 8) * 8
        padded = [np.pad(x, ((0, 0), (0, room - x.shape[1]))) for x in (zero, scale)]
        tensors = {"qweight": along_rows(codes, 4), "qzeros": along_rows(padded[0], 4), "scales": padded[1]}
        return tensors, values

    def interleaved(x: Any) -> Any:
        return along_rows(x.reshape(len(x), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(x), -1), 4)

    tensors = {
        "qweight": interleaved(codes.T),
        "qzeros": interleaved(zero.T),
        "scales": np.ascontiguousarray(scale.T),
    }
    return tensors, values
