"""Codes that are names of floats: a table of 16, or the 256 of an 8-bit float."""

from __future__ import annotations

from dataclasses import dataclass
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

    def whole_table(self) -> tuple[tuple[float, ...], float]:
        """(table, factor), table * factor the entries: whole numbers of int8 if a power of two makes them so.

        MXFP4's 0, 0.5, 1 .. 6 become 0 .. 12 halves; NF4's stay as they are and never meet int8 activations.
        """
        for power in range(8):
            entries = self.table * np.float32(2**power)
            if np.array_equal(entries, np.rint(entries)) and np.abs(entries).max() <= 127:
                return tuple(float(x) for x in entries), 2.0**-power
        return tuple(float(x) for x in self.table), 1.0

    @property
    def whole(self) -> bool:
        """Whether the entries are whole numbers of int8 times one factor."""
        table = np.array(self.whole_table()[0])
        return bool(np.array_equal(table, np.rint(table)) and np.abs(table).max() <= 127)


@dataclass(frozen=True)
class Fp8(Grouped):
    """scale * code, codes 8-bit floats as their bits, uint8 [rows, cols]; scale float32 [rows, groups].

    e4m3: 4 exponent bits (bias 7), no infinities, 0x7f and 0xff not numbers. e5m2: IEEE's rules, bias 15.
    Micikevicius et al. 2022. A scale for a block of 128 x 128 stands once for each of its rows.
    """

    codes: NDArray[np.uint8]
    kind_of_float: Literal["e4m3", "e5m2"]
    scale: Scale
    group: int
    order: Order | None = None

    def __post_init__(self) -> None:
        check_groups(self)
        if self.kind_of_float not in ("e4m3", "e5m2"):
            raise ValueError(f"no 8-bit float {self.kind_of_float}")

    def numbers(self) -> F32:
        return np.asarray(fp8_table(self.kind_of_float)[self.codes], np.float32)


def fp8_table(kind: str) -> F32:
    """The numbers of the 256 codes."""
    codes = np.arange(256, dtype=np.uint16)
    if kind == "e5m2":
        return (codes << 8).view(np.float16).astype(np.float32)
    # Moved under float16's exponent, whose bias is larger by 8.
    values = ((codes & 0x80) << 8 | (codes & 0x7F) << 7).view(np.float16).astype(np.float32) * np.float32(256)
    values[[0x7F, 0xFF]] = np.nan
    return values
