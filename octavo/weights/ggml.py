"""What GGUF calls a tensor's type: its number, how many values make a block, and a block's bytes.

The numbers are those of ggml's `ggml_type` (https://github.com/ggml-org/ggml, docs/gguf.md); types that ggml
has removed again are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """One tensor type: a row is whole blocks of `block` values, each `nbytes` long."""

    name: str
    number: int
    block: int
    nbytes: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values; ValueError when they are not whole blocks."""
        if cols % self.block:
            raise ValueError(f"{cols} columns are not whole blocks of {self.block} ({self.name})")
        return cols // self.block * self.nbytes

    def tensor_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape`, whose last axis is the row."""
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1])


_TABLE = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
)

TYPES: dict[int, GgmlType] = {number: GgmlType(name, number, block, n) for name, number, block, n in _TABLE}
"""By number."""

NAMED: dict[str, GgmlType] = {kind.name: kind for kind in TYPES.values()}
"""By name."""
