"""What quantized layouts share: codes [rows, cols] beside numbers for groups of neighbouring columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32, pack4, unpack4

Kind = Literal["none", "zero", "minimum"]
"""What joins scale * code in a group: nothing, -scale * zero, or a minimum."""

Order = NDArray[np.int32]

G = TypeVar("G", bound="Grouped")


@dataclass(frozen=True)
class SubScales:
    """Numbers in two steps, unit * code (the K formats of GGUF): a byte a group instead of a float.

    `codes`: int8 [rows, groups]; `unit`: float32 [rows, units], one for `per` neighbouring groups. A unit of
    at most 16 significant bits (every float16) makes every product exact in float32.
    """

    codes: NDArray[np.int8]
    unit: F32
    per: int

    def __post_init__(self) -> None:
        rows, groups = self.codes.shape
        if self.codes.dtype != np.int8 or self.unit.dtype != np.float32:
            raise ValueError(
                f"sub-scales are {self.codes.dtype} times {self.unit.dtype}, not int8 times float32"
            )
        if self.per <= 0 or self.unit.shape != (rows, -(-groups // self.per)):
            raise ValueError(f"units {self.unit.shape} for sub-scales {self.codes.shape}, one for {self.per}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.unit.nbytes

    def values(self) -> F32:
        """float32 [rows, groups]."""
        units = np.repeat(self.unit, self.per, axis=1)[:, : self.codes.shape[1]]
        return np.asarray(self.codes.astype(np.float32) * units, np.float32)

    def take(self, rows: Any) -> SubScales:
        """Some rows."""
        return SubScales(self.codes[rows], self.unit[rows], self.per)


Scale = F32 | SubScales
"""One number for each group, [rows, groups]."""


def scale_values(scale: Scale) -> F32:
    """float32 [rows, groups]."""
    return scale.values() if isinstance(scale, SubScales) else scale


class Grouped:
    """A matrix whose group g, columns g*group .. (the last may be shorter), has a scale of its own.

    The base of the layouts below, which are frozen dataclasses with the fields named here. A number is
    scale * (code - zero), or scale * code + minimum. `order`: stored column j is column order[j] of the
    matrix, or, where that is -1, nothing at all (what fills up a group).
    """

    halves: ClassVar[bool] = False
    """Two codes a byte, the even column in the low half."""
    kind: ClassVar[str] = ""
    """The kernels' name of the format."""
    codes: NDArray[Any]
    scale: Scale
    group: int
    zero: F32 | None = None
    minimum: Scale | None = None
    order: Order | None = None

    @property
    def stored_cols(self) -> int:
        """Columns of codes, those that fill up groups among them."""
        return int(cast(Any, self).cols) if self.halves else int(self.codes.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        cols = self.stored_cols if self.order is None else int((self.order >= 0).sum())
        return self.codes.shape[0], cols

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scale, self.zero, self.minimum, self.order)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def half_blocks(self) -> bool:
        """Whether kernels take the format in blocks of 16 columns too."""
        return True

    @property
    def offsets(self) -> tuple[Kind, Scale | None]:
        """(what joins, its numbers [rows, groups])."""
        if self.zero is not None:
            return "zero", self.zero
        return ("none", None) if self.minimum is None else ("minimum", self.minimum)

    def raw_codes(self) -> NDArray[Any]:
        """The codes, one an element, [rows, stored columns]."""
        return unpack4(self.codes, self.stored_cols) if self.halves else self.codes

    def numbers(self) -> F32:
        """What the codes stand for before zero and scale, float32 [rows, stored columns]."""
        return np.asarray(self.raw_codes(), np.float32)

    def stored(self) -> F32:
        """The numbers with the columns as they are stored."""
        numbers = self.numbers()
        if self.zero is not None:
            numbers = numbers - self._spread(self.zero)
        values = numbers * self._spread(self.scale)
        return np.asarray(values if self.minimum is None else values + self._spread(self.minimum), np.float32)

    def _spread(self, part: Scale) -> F32:
        """Each group's number for each of its columns."""
        return np.repeat(scale_values(part), self.group, axis=1)[:, : self.stored_cols]

    def dequantize(self) -> F32:
        """The numbers, float32 [rows, cols]."""
        values = self.stored()
        if self.order is None:
            return values
        out = np.empty(self.shape, np.float32)
        out[:, self.order[self.order >= 0]] = values[:, self.order >= 0]
        return out

    def take(self, rows: NDArray[np.integer[Any]]) -> Self:
        """Some rows, in any order."""
        return self._rows(rows)

    def slice(self, axis: int, start: int, stop: int) -> Self:
        """Rows (axis 0) or columns (1) start .. stop-1; a start inside a group makes groups finer."""
        if axis == 0:
            return self._rows(slice(start, stop))
        if self.order is not None:
            return self._pick_ordered(self.order, start, stop)
        group = math.gcd(self.group, start) if start % self.group else self.group
        parts = [_cut_groups(part, self.group, group, start, stop) for part in self.group_parts()]
        return self.with_codes(self.raw_codes()[:, start:stop], parts, group=group)

    def group_parts(self) -> list[Scale | None]:
        return [self.scale, self.zero, self.minimum]

    def _rows(self, rows: Any) -> Self:
        parts: list[Scale | None] = []
        for part in self.group_parts():
            if isinstance(part, SubScales):
                parts.append(part.take(rows))
            else:
                parts.append(None if part is None else part[rows])
        return self.replaced(self.codes[rows], parts)

    def with_codes(self, codes: NDArray[Any], parts: list[Scale | None], **fields: Any) -> Self:
        """This layout over other codes (one an element) and other groups."""
        if self.halves:
            return self.replaced(pack4(codes), parts, cols=codes.shape[1], **fields)
        return self.replaced(codes, parts, **fields)

    def replaced(self, codes: NDArray[Any], parts: list[Scale | None], **fields: Any) -> Self:
        for name, part in zip(("scale", "zero", "minimum"), parts, strict=True):
            if part is not None:
                fields[name] = part
        return cast(Self, replace(cast(Any, self), codes=codes, **fields))

    def _pick_ordered(self, order: Order, start: int, stop: int) -> Self:
        """The stored columns that belong to start .. stop-1, each group filled up to a multiple of 16."""
        keep = [
            columns[(order[columns] >= start) & (order[columns] < stop)]
            for columns in np.split(np.arange(len(order)), range(self.group, len(order), self.group))
        ]
        source = np.concatenate([np.pad(part, (0, -len(part) % 16), constant_values=-1) for part in keep])
        groups = np.concatenate([np.full(-(-len(part) // 16), g) for g, part in enumerate(keep)])
        return self.with_codes(
            np.where(source >= 0, self.raw_codes()[:, source], 0),
            [None if part is None else scale_values(part)[:, groups] for part in self.group_parts()],
            group=16,
            order=np.where(source >= 0, order[source] - start, -1).astype(np.int32),
        )


def check_groups(layout: Grouped) -> None:
    """ValueError where scales, offsets or the order do not fit the codes."""
    group, cols = layout.group, layout.stored_cols
    wanted = (layout.codes.shape[0], -(-cols // group) if group > 0 else 0)
    for name, part in (("scale", layout.scale), ("zero", layout.zero), ("minimum", layout.minimum)):
        if isinstance(part, SubScales):
            if part.shape != wanted:
                raise ValueError(f"{name} is in two steps {part.shape}, not {wanted}")
        elif part is not None and (part.shape != wanted or part.dtype != np.float32):
            raise ValueError(f"{name} is {part.dtype} {part.shape}, not float32 {wanted}")
    if layout.zero is not None and layout.minimum is not None:
        raise ValueError("a zero and a minimum exclude each other")
    if layout.halves and layout.codes.shape[1] != (cols + 1) // 2:
        raise ValueError(f"{layout.codes.shape[1]} bytes a row for {cols} codes of 4 bits")
    if layout.order is not None:
        there = np.sort(layout.order[layout.order >= 0])
        if layout.order.shape != (cols,) or not np.array_equal(there, np.arange(len(there))):
            raise ValueError("a column order must name every column once")


def _cut_groups(part: Scale | None, group: int, finer: int, start: int, stop: int) -> Scale | None:
    """The groups of columns start .. stop-1, each of `group` cut into groups of `finer`."""
    if part is None:
        return None
    first, end = start // finer, -(-stop // finer)
    if isinstance(part, SubScales) and finer == group and first % part.per == 0:
        return SubScales(
            part.codes[:, first:end], part.unit[:, first // part.per : -(-end // part.per)], part.per
        )
    return np.repeat(scale_values(part), group // finer, axis=1)[:, first:end]


BLOCK = 32
"""Columns of a matrix whose inputs share a scale when they are rounded to int8; half where groups need it."""


def input_block(layout: Grouped) -> int:
    """Columns that share the scale of an input.

    128 for 8 bits whose groups hold such runs, else 32, or 16 where groups are no multiple of 32.
    """
    group = _kernel_group(layout)
    if layout.kind == "int8":
        return byte_run(group, layout.stored_cols)
    return BLOCK if group % BLOCK == 0 else BLOCK // 2


def byte_run(group: int, cols: int) -> int:
    """The same for 8-bit codes with a scale for `group` of `cols` columns."""
    if group % (4 * BLOCK) == 0 or group >= cols:
        return 4 * BLOCK
    return BLOCK if group % BLOCK == 0 else BLOCK // 2


def _kernel_group(layout: Grouped) -> int:
    """The group as kernels count it, made of whole blocks."""
    whole = layout.group >= layout.stored_cols or not layout.half_blocks
    unit = BLOCK if whole else BLOCK // 2
    return -(-min(layout.group, layout.stored_cols) // unit) * unit


def input_order(layout: Grouped) -> Order | None:
    """The columns as kernels see them, -1 for nothing: every group begins a block. None: as they stand."""
    group, cols, whole = layout.group, layout.stored_cols, _kernel_group(layout)
    if group >= cols or group == whole:
        return layout.order
    order = np.full(-(-cols // group) * whole, -1, np.int32)
    columns = np.arange(cols)
    order[columns // group * whole + columns % group] = columns if layout.order is None else layout.order
    return order


def aligned(layout: G) -> G:
    """The layout with groups of whole blocks, as kernels want it: filled up where they are none."""
    group, cols, whole = layout.group, layout.stored_cols, _kernel_group(layout)
    if group >= cols or group == whole:
        return layout.replaced(layout.codes, layout.group_parts(), group=whole)
    order = input_order(layout)
    codes = np.zeros((layout.codes.shape[0], -(-cols // group) * whole), layout.codes.dtype)
    columns = np.arange(cols)
    codes[:, columns // group * whole + columns % group] = layout.raw_codes()
    return layout.with_codes(codes, layout.group_parts(), group=whole, order=order)
