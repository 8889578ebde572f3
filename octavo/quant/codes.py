"""Codes of a few bits in 32-bit words, and what layouts they become."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts import BLOCK, Int4Group, Int8, IntBits, Layout, pack4

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def unpack_words(words: NDArray[Any], bits: int, count: int) -> U8:
    """[n, words] of int32, each row one stream of bits with the lowest first -> [n, count] codes.

    Bits are 1 to 8; where they do not divide 32 a code may begin in one word and end in the next.
    """
    stream = np.ascontiguousarray(words).view(np.uint32)
    mask = np.uint8((1 << bits) - 1)
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = (stream[:, :, None] >> shifts).astype(np.uint8) & mask
        return codes.reshape(len(stream), -1)[:, :count]
    first = np.arange(count) * bits
    word, shift = first // 32, (first % 32).astype(np.uint64)
    wide = np.pad(stream, ((0, 0), (0, 1))).astype(np.uint64)
    pairs = wide[:, word] | (wide[:, word + 1] << np.uint64(32))
    return (pairs >> shift).astype(np.uint8) & mask


def grouped(
    codes: U8, bits: int, scale: F32, zero: NDArray[Any] | None, group: int, order: NDArray[np.int32] | None
) -> Layout:
    """scale * (code - zero) of unsigned codes [rows, cols] of up to 8 bits; without zero it is the middle.

    `scale` and `zero` are [rows, groups]. With `order`, stored column j is column order[j] of the matrix.
    """
    middle = 1 << (bits - 1)
    if zero is not None and (zero == middle).all():
        zero = None
    if bits <= 4:
        if bits < 4 and zero is None:
            zero = np.full(scale.shape, middle)
        return Int4Group(pack4(codes), codes.shape[1], scale, group, _float(zero), order=order)
    if bits in (5, 6):
        return IntBits(codes, bits, scale, group, _float(zero), order=order)
    signed = (codes ^ np.uint8(128)).view(np.int8)  # code - 128
    # The middle of codes of 7 bits is not 128.
    shifted = zero.astype(np.int32) - 128 if zero is not None else None
    if shifted is None and bits < 8:
        shifted = np.full(scale.shape, middle - 128)
    return Int8(signed, scale, group, _float(shifted), order=order)


def regrouped(codes: U8, bits: int, scale: F32, zero: NDArray[Any], group_of: NDArray[Any]) -> Layout:
    """scale * (code - zero) where column j is of group `group_of[j]`, whatever the groups' sizes.

    The columns of a group are put side by side and filled up to a multiple of 32.
    """
    order, blocks = [], []
    for g in np.unique(group_of):
        columns = np.flatnonzero(group_of == g)
        order.append(np.pad(columns, (0, -len(columns) % BLOCK), constant_values=-1))
        blocks += [int(g)] * (len(order[-1]) // BLOCK)
    source = np.concatenate(order).astype(np.int32)
    stored = np.where(source >= 0, codes[:, source], np.uint8(0))
    return grouped(stored, bits, scale[:, blocks], zero[:, blocks], BLOCK, source)


def _float(zero: NDArray[Any] | None) -> F32 | None:
    return None if zero is None else np.ascontiguousarray(zero, np.float32)
