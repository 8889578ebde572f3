"""Quantized layouts in the kernels' form: codes as they are, scales in the smallest float that holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo import _native
from octavo.ops.layouts import (
    F32,
    Dense,
    Fp8,
    Grouped,
    Int8,
    IntBits,
    Lut4,
    Scale,
    SubScales,
    aligned,
    input_block,
    scale_values,
    smallest_float,
)


class _Heads(NamedTuple):
    """Scales and offsets as they stand before the codes; units where they are in two steps."""

    dtype: str
    scale: NDArray[Any]
    offset: NDArray[Any] | None
    units: NDArray[Any] | None = None
    offset_units: NDArray[Any] | None = None
    per: int = 0


def pack_quantized(pool: _native.Pool, arena: _native.Arena, layout: Grouped) -> _native.Weight:
    """A quantized matrix in the kernels' tiles. ValueError for codes that are no numbers."""
    sums = _row_sums(layout)
    layout = aligned(layout)
    if isinstance(layout, IntBits) and layout.bits == 5 and input_block(layout) < 32:
        layout = _six_bits(layout)
    heads = _heads(layout)
    table, factor, name = _table(layout)
    inputs, x_scale, x_zero = _inputs(layout)
    return _native.Weight.quantized(
        pool,
        arena,
        name,
        np.ascontiguousarray(layout.codes),
        heads.scale,
        heads.offset,
        heads.units,
        heads.offset_units,
        heads.dtype,
        layout.offsets[0],
        layout.codes.shape[0],
        layout.stored_cols,
        layout.group,
        heads.per,
        factor,
        table,
        [] if layout.order is None else layout.order.tolist(),
        inputs,
        x_scale,
        x_zero,
        sums,
    )


def _six_bits(layout: IntBits) -> IntBits:
    """The same numbers in codes of 6 bits: those of 5 have no blocks of 16 columns."""
    middle = 16 if layout.offsets[1] is None else 0
    codes = (layout.codes + np.uint8(middle)).astype(np.uint8)
    return IntBits(codes, 6, layout.scale, layout.group, layout.zero, layout.minimum, layout.order)


def _heads(layout: Grouped) -> _Heads:
    kind, offset = layout.offsets
    scale = layout.scale
    alike = offset is None or (
        isinstance(offset, SubScales) and isinstance(scale, SubScales) and kind != "zero"
    )
    if isinstance(scale, SubScales) and alike and (offset is None or _per(offset) == scale.per):
        units = (scale.unit,) if not isinstance(offset, SubScales) else (scale.unit, offset.unit)
        dtype = smallest_float(*units)
        bits = [np.ascontiguousarray(Dense.of(unit, dtype).data) for unit in units]
        joined = np.ascontiguousarray(offset.codes) if isinstance(offset, SubScales) else None
        codes = np.ascontiguousarray(scale.codes)
        return _Heads(dtype, codes, joined, bits[0], bits[1] if len(bits) > 1 else None, scale.per)
    parts = [scale_values(part) for part in (scale, offset) if part is not None]
    dtype = smallest_float(*parts)
    stored = [np.ascontiguousarray(Dense.of(part, dtype).data) for part in parts]
    return _Heads(dtype, stored[0], stored[1] if len(stored) > 1 else None)


def _per(scale: Scale) -> int:
    return scale.per if isinstance(scale, SubScales) else 0


def _table(layout: Grouped) -> tuple[list[float], float, str]:
    """(entries, factor, the kernels' name of the format)."""
    if isinstance(layout, Lut4):
        entries, factor, size = layout.whole_table()
        return list(entries), factor * layout.factor, "lut4" if size == 1 else "lut4_wide"
    if isinstance(layout, Fp8):
        return [], 1.0, layout.float_kind
    return [], 1.0, f"int{layout.bits}" if isinstance(layout, IntBits) else layout.kind


def _inputs(layout: Grouped) -> tuple[str, float, float]:
    """How inputs are rounded, and their scale and zero where they are fixed."""
    how = layout.activation if isinstance(layout, Int8) else None
    if how is None:
        return "block", 0.0, 0.0
    if how.scale is not None:
        return "fixed", how.scale, float(how.zero)
    return ("row" if how.symmetric else "row_zero"), 0.0, 0.0


def _row_sums(layout: Grouped) -> F32 | None:
    """[rows]: what a column of ones gives, for inputs with a zero."""
    how = layout.activation if isinstance(layout, Int8) else None
    if how is None or (how.scale is None and how.symmetric) or (how.scale is not None and how.zero == 0):
        return None
    return np.asarray(layout.dequantize().sum(axis=1, dtype=np.float64), np.float32)
