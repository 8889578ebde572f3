"""Codes that are names of floats: a table of 16, or the 256 of an 8-bit float."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32
from octavo.ops.layouts.groups import Grouped, Order, Scale, check_groups


@dataclass(frozen=True)
class Lut4(Grouped):
    """factor * scale * table[code]: codes as in Int4Group, table float32 [16], scale float32 [rows, groups].

    `factor` is one for the whole matrix, so that the scales may be of a small float (NVFP4).
    """

    codes: NDArray[np.uint8]
    cols: int
    table: F32
    scale: Scale
    group: int
    factor: float = 1.0
    order: Order | None = None
    kind: ClassVar[str] = "lut4"
    halves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_groups(self)
        if self.table.shape != (16,) or self.table.dtype != np.float32:
            raise ValueError(f"a table of {self.table.dtype} {self.table.shape}, not float32 (16,)")

    def numbers(self) -> F32:
        return np.asarray(self.table[self.raw_codes()], np.float32)

    def stored(self) -> F32:
        values = super().stored()
        return values if self.factor == 1 else values * np.float32(self.factor)

    @property
    def half_blocks(self) -> bool:
        return self.whole_table()[2] == 1

    def whole_table(self) -> tuple[tuple[float, ...], float, int]:
        """(entries, factor, bytes): whole numbers that are the table's times 1 / factor, each of 1 byte or 3.

        MXFP4's 0, 0.5, 1 .. 6 become 0 .. 12 halves. What is no small whole number (NF4's entries) becomes
        one of 23 bits, off by less than 2**-23 of the largest entry: the precision of a float32 sum.
        """
        for power in range(8):
            entries = self.table * np.float32(2**power)
            if np.array_equal(entries, np.rint(entries)) and np.abs(entries).max() <= 127:
                return tuple(entries.tolist()), 2.0**-power, 1
        largest = float(np.abs(self.table).max())
        if not np.isfinite(largest):
            raise ValueError("a table of 4-bit codes with entries that are no numbers")
        power = math.floor(math.log2(127 * 65536 / largest))
        return tuple(np.rint(self.table.astype(np.float64) * 2.0**power).tolist()), 2.0**-power, 3

    def met_by_int8(self) -> Lut4:
        """The matrix as products with int8 inputs have it: of entries of 3 bytes the upper two, rounded.

        That is off by less than 2**-15 of the largest entry, far less than the inputs' own rounding.
        """
        entries, factor, size = self.whole_table()
        if size == 1:
            return self
        upper = np.rint(np.array(entries) / 256) * 256 * factor
        return replace(self, table=upper.astype(np.float32))


@dataclass(frozen=True)
class Fp8(Grouped):
    """scale * code, codes 8-bit floats as their bits, uint8 [rows, cols]; scale float32 [rows, groups].

    e4m3: 4 exponent bits (bias 7), no infinities, 0x7f and 0xff not numbers. e5m2: IEEE's rules, bias 15.
    Micikevicius et al. 2022. A scale for a block of 128 x 128 stands once for each of its rows.
    """

    codes: NDArray[np.uint8]
    float_kind: Literal["e4m3", "e5m2"]
    scale: Scale
    group: int
    order: Order | None = None

    def __post_init__(self) -> None:
        check_groups(self)
        if self.float_kind not in ("e4m3", "e5m2"):
            raise ValueError(f"no 8-bit float {self.float_kind}")

    @property
    def half_blocks(self) -> bool:
        return False

    def numbers(self) -> F32:
        return np.asarray(fp8_table(self.float_kind)[self.codes], np.float32)


def fp8_table(kind: str) -> F32:
    """The numbers of the 256 codes."""
    codes = np.arange(256, dtype=np.uint16)
    if kind == "e5m2":
        return (codes << 8).view(np.float16).astype(np.float32)
    # Moved under float16's exponent, whose bias is larger by 8.
    values = ((codes & 0x80) << 8 | (codes & 0x7F) << 7).view(np.float16).astype(np.float32) * np.float32(256)
    values[[0x7F, 0xFF]] = np.nan
    return values
