"""AWQ (Lin et al. 2023), as AutoAWQ stores it: 4 bits, scale * (code - zero).

A module X of `in` columns and `out` rows, in the packing of GEMM:

- `X.qweight` int32 [in, out / 8]: a word holds eight neighbouring rows, from its lowest 4 bits up the rows
  0, 2, 4, 6, 1, 3, 5, 7; `X.qzeros` int32 [groups, out / 8] likewise; `X.scales` [groups, out].

In the packing of GEMV everything is turned round and nothing interleaved: `X.qweight` int32 [out, in / 8],
`X.qzeros` int32 [out, words] and `X.scales` [out, words * 8], padded beyond the last group.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Int4Group, Layout
from octavo.quant.codes import U8, grouped, unpack_words
from octavo.quant.format import Tensors, group_size, integer

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The row of each 4 bits of a word."""
_ROWS = 256
"""Rows of words that are taken apart at a time, so that they stay in the cache."""
_PACKINGS = ("gemm", "gemv")


class Awq:
    """An AWQ checkpoint."""

    method = "awq"
    unused: tuple[str, ...] = ()
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        integer(config, "bits" if "bits" in config else "w_bit", (4,), "4", default=4)
        self._group = group_size(config, "group_size" if "group_size" in config else "q_group_size", 128)
        packing = str(
            config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm"
        )
        self._packing = packing.lower()
        if self._packing not in _PACKINGS:
            raise UnsupportedModel(
                f"AWQ's version {packing!r:.60} is not supported.", hint=f"Supported: {', '.join(_PACKINGS)}."
            )

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.qweight" not in present:
            return ()
        return ("qweight", "qzeros", "scales")

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        group = min(self._group or cols, cols)
        return (
            _gemv(tensors, rows, cols, group)
            if self._packing == "gemv"
            else _gemm(tensors, rows, cols, group)
        )


def _gemm(tensors: Tensors, rows: int, cols: int, group: int) -> Layout:
    groups, words = -(-cols // group), -(-rows // 8)
    qweight = tensors.ints("qweight", "int32", (cols, words))
    qzeros = tensors.ints("qzeros", "int32", (groups, words))
    scale = np.ascontiguousarray(tensors.floats("scales", (groups, rows)).T)
    zero = np.ascontiguousarray(_straight(qzeros)[:, :rows].T)
    return grouped(_straight(qweight)[:, :rows], 4, scale, zero, group, None)


def _straight(words: NDArray[Any]) -> U8:
    """[n, words] -> [n, words * 8] codes, the rows of each word in their order."""
    stream = words.view(np.uint32)
    straight = np.empty((len(words), words.shape[1] * 8), np.uint8)
    for start in range(0, len(words), _ROWS):
        some, out = stream[start : start + _ROWS], straight[start : start + _ROWS]
        for at, row in enumerate(_ORDER):
            out[:, row::8] = some >> np.uint32(4 * at) & np.uint32(15)
    return straight


def _gemv(tensors: Tensors, rows: int, cols: int, group: int) -> Layout:
    groups, words = -(-cols // group), -(-cols // 8)
    qweight = np.ascontiguousarray(tensors.ints("qweight", "int32", (rows, words)))
    most = -(-groups // 8) * 8
    qzeros = tensors.ints("qzeros", "int32", (rows, range(-(-groups // 8), most + 1)))
    scale = np.ascontiguousarray(tensors.floats("scales", (rows, range(groups, most * 8 + 1)))[:, :groups])
    zero = unpack_words(qzeros, 4, groups)
    middle = (zero == 8).all()
    codes = qweight.view(np.uint8)[:, : (cols + 1) // 2]
    return Int4Group(codes, cols, scale, group, None if middle else zero.astype(np.float32))
