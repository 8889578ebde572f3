"""Codes of a few bits in 32-bit words, and what layouts they become."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts import BLOCK, Int4Group, Int8, IntBits, Layout

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


_ROWS = 256
"""Rows that are moved about at a time, so that they stay in the cache."""


def unpack_down(words: NDArray[Any], bits: int, count: int) -> U8:
    """[words, n] of int32, each column one stream of bits with the lowest first -> [count, n] codes.

    Bits are 1 to 8; where they do not divide 32 a code may begin in one word and end in the next. 32 codes
    fill `bits` words, and are taken out of all such runs at once.
    """
    stream = words.view(np.uint32)
    runs = -(-count // 32)
    if len(stream) < runs * bits:
        stream = np.pad(stream, ((0, runs * bits - len(stream)), (0, 0)))
    codes = np.empty((runs * 32, stream.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        one = stream[word : runs * bits : bits] >> np.uint32(shift)
        if shift + bits > 32:
            one |= stream[word + 1 : runs * bits : bits] << np.uint32(32 - shift)
        codes[i::32] = one & mask
    return codes[:count]


def unpack_words(words: NDArray[Any], bits: int, count: int) -> U8:
    """The same along the rows: [n, words] -> [n, count]."""
    if bits == 8:
        return np.ascontiguousarray(words).view(np.uint8)[:, :count]
    return turned(unpack_down(turned(words), bits, count))


def turned(matrix: NDArray[Any]) -> NDArray[Any]:
    """The transpose, in order."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _ROWS):
        out[:, start : start + _ROWS] = matrix[start : start + _ROWS].T
    return out


def grouped(
    down: U8, bits: int, scale: F32, zero: NDArray[Any] | None, group: int, order: NDArray[np.int32] | None
) -> Layout:
    """scale * (code - zero) of unsigned codes of up to 8 bits; without zero it is the middle.

    `down` are the codes, a row for each column of the matrix; `scale` and `zero` are [rows, groups]. With
    `order`, the matrix has column j where `order[k]` is j, and `down` is in that order already.
    """
    middle = 1 << (bits - 1)
    if zero is not None and (zero == middle).all():
        zero = None
    if bits <= 4:
        if bits < 4 and zero is None:
            zero = np.full(scale.shape, middle)
        pairs = down[0::2].copy()
        pairs[: len(down) // 2] |= down[1::2] << 4
        return Int4Group(turned(pairs), len(down), scale, group, _float(zero), order=order)
    codes = turned(down)
    if bits in (5, 6):
        return IntBits(codes, bits, scale, group, _float(zero), order=order)
    signed = (codes ^ np.uint8(128)).view(np.int8)  # code - 128
    # The middle of codes of 7 bits is not 128.
    shifted = (
        None if zero is None else zero - 128.0 if zero.dtype.kind == "f" else zero.astype(np.int32) - 128
    )
    if shifted is None and bits < 8:
        shifted = np.full(scale.shape, middle - 128)
    return Int8(signed, scale, group, _float(shifted), order=order)


def in_groups(
    down: U8, bits: int, scale: F32, zero: NDArray[Any] | None, group: int, index: NDArray[np.int32] | None
) -> Layout:
    """The layout of columns whose groups are `index` (None: one after another, `group` columns each), put
    side by side where each group has its size.
    """
    natural = np.arange(len(down)) // group
    if index is None or np.array_equal(index, natural):
        return grouped(down, bits, scale, zero, group, None)
    order = np.argsort(index, kind="stable").astype(np.int32)
    if np.array_equal(index[order], natural):
        return grouped(down[order], bits, scale, zero, group, order)
    middle = np.full(scale.shape, 1 << (bits - 1)) if zero is None else zero
    return regrouped(down, bits, scale, middle, index)


def regrouped(down: U8, bits: int, scale: F32, zero: NDArray[Any], group_of: NDArray[Any]) -> Layout:
    """scale * (code - zero) where column j is of group `group_of[j]`, whatever the groups' sizes.

    The columns of a group are put side by side and filled up to a multiple of 32.
    """
    order, blocks = [], []
    for g in np.unique(group_of):
        columns = np.flatnonzero(group_of == g)
        order.append(np.pad(columns, (0, -len(columns) % BLOCK), constant_values=-1))
        blocks += [int(g)] * (len(order[-1]) // BLOCK)
    source = np.concatenate(order).astype(np.int32)
    stored = np.where((source >= 0)[:, None], down[source], np.uint8(0))
    return grouped(stored, bits, scale[:, blocks], zero[:, blocks], BLOCK, source)


def _float(zero: NDArray[Any] | None) -> F32 | None:
    return None if zero is None else np.ascontiguousarray(zero, np.float32)
