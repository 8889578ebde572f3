"""Weight layouts: what kernels know, never what a checkpoint calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

FLOATS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
"""Numpy's view of each stored float; bfloat16 stands as its 16 bits."""

F32 = NDArray[np.float32]


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True)
class Dense:
    """A plain tensor. `data` is float32, float16, or bfloat16 as uint16; `dtype` says which."""

    data: NDArray[np.generic]
    dtype: str

    @classmethod
    def of(cls, values: NDArray[np.float32], dtype: str) -> Dense:
        """float32 values rounded to `dtype`."""
        return cls(f32_to_bf16(values) if dtype == "bfloat16" else values.astype(FLOATS[dtype]), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32 (no copy when they are)."""
        if self.dtype == "bfloat16":
            return bf16_to_f32(self.data.view(np.uint16))
        return self.data.astype(np.float32, copy=False)

    def take(self, rows: NDArray[np.integer[Any]]) -> Dense:
        """Some rows, in any order."""
        return Dense(self.data[rows], self.dtype)

    def slice(self, axis: int, start: int, stop: int) -> Dense:
        """Rows (axis 0) or columns (1) start .. stop-1."""
        return Dense(self.data[start:stop] if axis == 0 else self.data[:, start:stop], self.dtype)


Kind = Literal["none", "zero", "minimum"]
"""What joins scale * code in a group: nothing, -scale * zero, or a minimum."""


def _spread(values: F32, group: int, cols: int) -> F32:
    """[rows, groups] -> [rows, cols]: each group's value for each of its columns."""
    return np.repeat(values, group, axis=1)[:, :cols]


def unpack4(codes: NDArray[np.uint8], cols: int) -> NDArray[np.uint8]:
    """[rows, (cols + 1) / 2] bytes -> [rows, cols] codes: the even column is the low half."""
    pairs = np.stack([codes & 15, codes >> 4], axis=-1)
    return pairs.reshape(*codes.shape[:-1], -1)[..., :cols]


def pack4(codes: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """The other way round; the half that an odd last column leaves is 0."""
    even = np.pad(codes.astype(np.uint8), [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return np.asarray(even[..., 0::2] | (even[..., 1::2] << 4), np.uint8)


def smallest_float(*arrays: F32) -> str:
    """The smallest of bfloat16, float16 and float32 that holds every number exactly."""
    with np.errstate(over="ignore"):
        for dtype in ("bfloat16", "float16"):
            if all(np.array_equal(Dense.of(a, dtype).dequantize(), a) for a in arrays):
                return dtype
    return "float32"


@dataclass(frozen=True)
class Int8:
    """scale * (code - zero), or scale * code + minimum: codes int8 [rows, cols].

    `scale`, `zero` and `minimum` are float32 [rows, groups]; group g is columns g*group .. (the last may be
    shorter), one group for a scale per row. At most one of zero and minimum.
    """

    codes: NDArray[np.int8]
    scale: F32
    group: int
    zero: F32 | None = None
    minimum: F32 | None = None
    kind: ClassVar[str] = "int8"

    def __post_init__(self) -> None:
        _check(self.shape, self.scale, self.group, self.zero, self.minimum)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + _nbytes(self.scale, self.zero, self.minimum)

    @property
    def offsets(self) -> tuple[Kind, F32 | None]:
        """(what joins, its numbers [rows, groups])."""
        return _offsets(self.zero, self.minimum)

    def dequantize(self) -> F32:
        """The numbers, float32 [rows, cols]."""
        return _values(self.codes.astype(np.float32), self.scale, self.group, self.zero, self.minimum)

    def take(self, rows: NDArray[np.integer[Any]]) -> Int8:
        """Some rows, in any order."""
        return Int8(
            self.codes[rows], self.scale[rows], self.group, *_each(_rows(rows), self.zero, self.minimum)
        )

    def slice(self, axis: int, start: int, stop: int) -> Int8:
        """Rows, or columns from the start of a group to the end of one (or of the row)."""
        part = _rows(slice(start, stop)) if axis == 0 else _groups(self, start, stop)
        codes = self.codes[start:stop] if axis == 0 else self.codes[:, start:stop]
        return Int8(codes, part(self.scale), self.group, *_each(part, self.zero, self.minimum))


@dataclass(frozen=True)
class Int4Group:
    """4-bit codes 0 .. 15, two a byte (even column in the low half): codes uint8 [rows, (cols + 1) / 2].

    The number is scale * (code - zero), or scale * code + minimum; without both, zero is 8. `scale`, `zero`,
    `minimum`: float32 [rows, groups]. `order`: stored column j is column order[j] of the matrix.
    """

    codes: NDArray[np.uint8]
    cols: int
    scale: F32
    group: int
    zero: F32 | None = None
    minimum: F32 | None = None
    order: NDArray[np.int32] | None = None
    kind: ClassVar[str] = "int4"

    def __post_init__(self) -> None:
        _check(self.shape, self.scale, self.group, self.zero, self.minimum)
        if self.codes.shape[1] != (self.cols + 1) // 2:
            raise ValueError(f"{self.codes.shape[1]} bytes a row for {self.cols} codes of 4 bits")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.cols

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + _nbytes(self.scale, self.zero, self.minimum, self.order)

    @property
    def offsets(self) -> tuple[Kind, F32 | None]:
        """(what joins, its numbers [rows, groups])."""
        return _offsets(self.zero, self.minimum)

    def stored(self) -> F32:
        """The numbers with the columns as they are stored."""
        codes = unpack4(self.codes, self.cols).astype(np.float32)
        if self.zero is None and self.minimum is None:
            codes -= np.float32(8)
        return _values(codes, self.scale, self.group, self.zero, self.minimum)

    def dequantize(self) -> F32:
        """The numbers, float32 [rows, cols]."""
        values = self.stored()
        if self.order is None:
            return values
        out = np.empty_like(values)
        out[:, self.order] = values
        return out

    def take(self, rows: NDArray[np.integer[Any]]) -> Int4Group:
        """Some rows, in any order."""
        return self._cut(self.codes[rows], self.cols, _rows(rows), self.order)

    def slice(self, axis: int, start: int, stop: int) -> Int4Group:
        """Rows, or columns from the start of a group to the end of one where no order is in the way."""
        if axis == 0:
            return self._cut(self.codes[start:stop], self.cols, _rows(slice(start, stop)), self.order)
        if self.order is not None:
            raise ValueError("a matrix with a column order cannot be cut along its columns")
        bytes_of = self.codes[:, start // 2 : (stop + 1) // 2]
        return self._cut(bytes_of, stop - start, _groups(self, start, stop), None)

    def _cut(self, codes: NDArray[np.uint8], cols: int, part: _Part, order: Any) -> Int4Group:
        zero, minimum = _each(part, self.zero, self.minimum)
        return Int4Group(codes, cols, part(self.scale), self.group, zero, minimum, order)


@dataclass(frozen=True)
class Lut4:
    """scale * table[code]: codes as in Int4Group, table float32 [16], scale float32 [rows, groups]."""

    codes: NDArray[np.uint8]
    cols: int
    table: F32
    scale: F32
    group: int
    kind: ClassVar[str] = "lut4"

    def __post_init__(self) -> None:
        _check(self.shape, self.scale, self.group, None, None)
        if self.codes.shape[1] != (self.cols + 1) // 2 or self.table.shape != (16,):
            raise ValueError(f"codes {self.codes.shape} for {self.cols} columns, table {self.table.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.cols

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + _nbytes(self.scale, self.table)

    @property
    def offsets(self) -> tuple[Kind, F32 | None]:
        """None: a table needs no offset."""
        return "none", None

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

    def dequantize(self) -> F32:
        """The numbers, float32 [rows, cols]."""
        return _values(self.table[unpack4(self.codes, self.cols)], self.scale, self.group, None, None)

    def take(self, rows: NDArray[np.integer[Any]]) -> Lut4:
        """Some rows, in any order."""
        return Lut4(self.codes[rows], self.cols, self.table, self.scale[rows], self.group)

    def slice(self, axis: int, start: int, stop: int) -> Lut4:
        """Rows, or columns from the start of a group to the end of one."""
        if axis == 0:
            return Lut4(self.codes[start:stop], self.cols, self.table, self.scale[start:stop], self.group)
        scale = _groups(self, start, stop)(self.scale)
        return Lut4(self.codes[:, start // 2 : (stop + 1) // 2], stop - start, self.table, scale, self.group)


@dataclass(frozen=True)
class Online:
    """A dense matrix to be rounded to `bits` (8 or 4) while it is packed, one scale for `group` columns.

    Quantized codes with bfloat16 scales, chosen for the least squared error; see :mod:`octavo.ops.rounding`.
    """

    dense: Dense
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense.shape

    @property
    def nbytes(self) -> int:
        """Of what it becomes."""
        rows, cols = self.shape
        return rows * (-(-cols * self.bits // 8) + 2 * -(-cols // self.group))

    def rounded(self) -> Int8 | Int4Group:
        """What it becomes."""
        from octavo.ops.rounding import round_matrix

        return round_matrix(self.dense.dequantize(), self.bits, self.group)

    def dequantize(self) -> F32:
        """The numbers after rounding; slow: call rounded() once instead."""
        return self.rounded().dequantize()

    def take(self, rows: NDArray[np.integer[Any]]) -> Online:
        """Some rows, in any order."""
        return Online(self.dense.take(rows), self.bits, self.group)

    def slice(self, axis: int, start: int, stop: int) -> Online:
        """Rows, or columns from the start of a group to the end of one."""
        if axis == 1 and start % self.group:
            raise ValueError(f"column {start} does not begin a group of {self.group}")
        return Online(self.dense.slice(axis, start, stop), self.bits, self.group)


Layout = Dense | Int8 | Int4Group | Lut4 | Online
"""Every layout has `shape`, `nbytes`, `dequantize()`, `take(rows)` and `slice(axis, start, stop)`. Codes are
never rounded again: a format decodes into one of these as it is (docs/design.md)."""

_Part = Callable[[F32], F32]


def _values(codes: F32, scale: F32, group: int, zero: F32 | None, minimum: F32 | None) -> F32:
    cols = codes.shape[1]
    if zero is not None:
        codes = codes - _spread(zero, group, cols)
    values: F32 = codes * _spread(scale, group, cols)
    return values if minimum is None else values + _spread(minimum, group, cols)


def _offsets(zero: F32 | None, minimum: F32 | None) -> tuple[Kind, F32 | None]:
    if zero is not None:
        return "zero", zero
    return ("none", None) if minimum is None else ("minimum", minimum)


def _check(shape: tuple[int, int], scale: F32, group: int, zero: F32 | None, minimum: F32 | None) -> None:
    wanted = (shape[0], -(-shape[1] // group) if group > 0 else 0)
    for name, part in (("scale", scale), ("zero", zero), ("minimum", minimum)):
        if part is not None and (part.shape != wanted or part.dtype != np.float32):
            raise ValueError(f"{name} is {part.dtype} {part.shape}, not float32 {wanted}")
    if zero is not None and minimum is not None:
        raise ValueError("a zero and a minimum exclude each other")


def _nbytes(*parts: NDArray[Any] | None) -> int:
    return sum(part.nbytes for part in parts if part is not None)


def _rows(rows: Any) -> _Part:
    return lambda part: part[rows]


def _groups(layout: Int8 | Int4Group | Lut4, start: int, stop: int) -> _Part:
    """The groups of columns start .. stop-1. ValueError when they are not whole."""
    if start % layout.group or (stop % layout.group and stop != layout.shape[1]) or start % 2:
        raise ValueError(f"columns {start} to {stop} are not whole groups of {layout.group}")
    return lambda part: part[:, start // layout.group : -(-stop // layout.group)]


def _each(part: _Part, zero: F32 | None, minimum: F32 | None) -> tuple[F32 | None, F32 | None]:
    return None if zero is None else part(zero), None if minimum is None else part(minimum)
