"""NF4: 4-bit codes of numbers that are normally distributed, a size for each block of the flattened matrix.

Dettmers et al. 2023 (QLoRA), section 3, as bitsandbytes stores and computes it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from octavo.config.machine import cpu_count
from octavo.ops.layouts import Dense, Lut4, pack4
from octavo.quant.format import F32

U8 = NDArray[np.uint8]

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The numbers of the 16 codes, ascending."""
BLOCK = 64
"""Neighbours that share a size."""

_EDGES = ((NF4[:-1] + NF4[1:]) / np.float32(2)).astype(np.float32)
"""Above the edge i lies a number of code i + 1 or more; on it, of code i."""
_BINS = 256
_CHUNK = 1 << 16
"""Numbers that are rounded at a time, so that they stay in the cache; whole blocks."""
SMALLEST_GROUP = 8
"""Columns below which a float for each group takes more room than the numbers."""


def _first_codes() -> U8:
    """The code at the beginning of the bin before each bin of -1 .. 1; two bins hold at most one edge.

    The bin before, for a number just below a bin may be rounded into it.
    """
    begins = np.arange(-1, _BINS) * (2.0 / _BINS) - 1.0
    return np.searchsorted(_EDGES, begins, side="left").astype(np.uint8)


_FIRST = _first_codes()
_EDGE = np.append(_EDGES, np.float32(np.inf))[_FIRST]
"""Of each bin: the edge above its first code."""


def round_nf4(matrix: Dense) -> Lut4 | Dense:
    """A matrix [rows, cols] in NF4: the codes and sizes that bitsandbytes gives, its blocks running on from
    row to row. A block with a number that is none stays one of those.
    """
    rows, cols = matrix.shape
    flat = matrix.data.reshape(-1)
    codes = np.empty(flat.size, np.uint8)
    sizes = np.empty(-(-flat.size // BLOCK), np.float32)

    def round_chunk(start: int) -> None:
        some = Dense(flat[start : start + _CHUNK], matrix.dtype).dequantize()
        whole = some.size // BLOCK * BLOCK
        end = (start + whole) // BLOCK
        blocks = some[:whole].reshape(-1, BLOCK)
        most = np.abs(blocks).max(axis=1, initial=0)
        sizes[start // BLOCK : end] = most
        with np.errstate(invalid="ignore"):
            inverse = np.float32(1) / np.maximum(most, np.float32(1e-38))
            codes[start : start + whole] = _codes((blocks * inverse[:, None]).reshape(-1))
        if whole < some.size:
            # The library divides in a last block that is cut short, where it multiplies in the others.
            sizes[-1] = np.maximum(np.abs(some[whole:]).max(), np.float32(1e-38))
            with np.errstate(invalid="ignore"):
                codes[start + whole :] = _codes(some[whole:] / sizes[-1])

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(round_chunk, range(0, flat.size, _CHUNK)))
    return in_blocks(codes, NF4, sizes, BLOCK, rows, cols)


def _codes(numbers: F32) -> U8:
    """The nearest code of each number in -1 .. 1: that of the bin it lies in, and 1 more above its edge."""
    places = numbers + np.float32(1)
    places *= np.float32(_BINS // 2)
    bins = places.astype(np.intp)
    codes = _FIRST.take(bins, mode="clip")
    codes += numbers > _EDGE.take(bins, mode="clip")
    return codes


def in_blocks(codes: U8, table: F32, sizes: F32, block: int, rows: int, cols: int) -> Lut4 | Dense:
    """table[code] * size of a flattened matrix's codes [rows * cols], a size for each `block` neighbours."""
    if cols % block and block % cols:
        return _across_rows(codes, table, sizes, block, rows, cols)
    # Blocks that hold several rows are given to each of them.
    by_row = np.repeat(sizes, block // cols)[:rows] if block % cols == 0 else sizes
    group = min(block, cols)
    return Lut4(pack4(codes.reshape(rows, cols)), cols, table, by_row.reshape(rows, -1), group)


def _across_rows(codes: U8, table: F32, sizes: F32, block: int, rows: int, cols: int) -> Lut4 | Dense:
    """Blocks end inside rows. What divides both is a group, and where that is small the numbers stand for
    themselves.
    """
    step = math.gcd(block, cols)
    if step < SMALLEST_GROUP:
        values = table[codes] * np.repeat(sizes, block)[: len(codes)]
        return Dense(np.ascontiguousarray(values.reshape(rows, cols), np.float32), "float32")
    scale = sizes[np.arange(0, rows * cols, step) // block].reshape(rows, -1)
    return Lut4(pack4(codes.reshape(rows, cols)), cols, table, scale, step)
