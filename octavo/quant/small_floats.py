"""Weights and scales of 8-bit and 4-bit floats, as several formats store them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts import FLOATS, Fp8, Lut4, fp8_table
from octavo.quant.format import F32, Size, Tensors

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The numbers of 4-bit floats. OCP Microscaling Formats v1.0, 5.3.3."""
_KINDS: dict[str, Literal["e4m3", "e5m2"]] = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_SCALES = (*FLOATS, "float8_e4m3fn", "float8_e8m0fnu", "uint8")
"""A scale stored as uint8 is a power of two, as is float8_e8m0fnu."""


def scales(tensors: Tensors, suffix: str, shape: tuple[Size, ...]) -> F32:
    """Scales as float32, whatever float they are stored in."""
    tensor = tensors.get(suffix, _SCALES, shape)
    if tensor.dtype == "float8_e4m3fn":
        return tensors.finite(suffix, fp8_table("e4m3")[tensor.data.view(np.uint8)])
    if tensor.dtype in ("float8_e8m0fnu", "uint8"):
        return tensors.finite(suffix, power_of_two(tensor.data.view(np.uint8)))
    return tensors.finite(suffix, tensor.dequantize())


def power_of_two(codes: NDArray[np.uint8]) -> F32:
    """e8m0: 2 ** (code - 127), 255 is no number. OCP Microscaling Formats v1.0, 5.4.1."""
    number = codes != 255
    powers = np.ldexp(np.float32(1), np.where(number, codes, 0).astype(np.int32) - 127).astype(np.float32)
    return np.where(number, powers, np.float32(np.nan))


def spread(
    tensors: Tensors,
    suffix: str,
    rows: int,
    cols: int,
    *,
    block: tuple[int, int] | None = None,
    group: int | None = None,
) -> tuple[F32, int]:
    """(scales [rows, groups], columns in a group) of a tensor that holds one number for the matrix, one for
    each row, one for each `group` columns of a row, or, when `block` (rows, columns) is given, one for each
    block. Without a group that divides them so, the columns are shared out evenly.
    """
    found = tensors.stored(suffix).shape
    if block is not None:
        high, wide = block
        given = scales(tensors, suffix, (-(-rows // high), -(-cols // wide)))
        return np.repeat(given, high, axis=0)[:rows], min(wide, cols)
    if found in ((), (1,), (1, 1)):
        return np.full((rows, 1), scales(tensors, suffix, found).reshape(-1)[0], np.float32), cols
    if len(found) == 1:
        return scales(tensors, suffix, (rows,)).reshape(-1, 1), cols
    groups = found[1] if len(found) == 2 and found[1] and cols % found[1] == 0 else 1
    group = group or cols // groups
    return scales(tensors, suffix, (rows, -(-cols // group))), group


def fp8(tensors: Tensors, rows: int, cols: int, scale: F32, group: int, suffix: str = "weight") -> Fp8:
    """The layout of a tensor of 8-bit floats that are all numbers."""
    weight = tensors.get(suffix, tuple(_KINDS), (rows, cols))
    codes = weight.data.view(np.uint8)
    kind = _KINDS[weight.dtype]
    # Of e4m3 the last code of each sign is no number, of e5m2 every one with the largest exponent.
    wrong = (codes & 0x7F) >= (0x7F if kind == "e4m3" else 0x7C)
    if wrong.any():
        at = [int(i) for i in np.argwhere(wrong)[0]]
        raise tensors.error(suffix, f"holds a NaN or an infinity at {at}, expected a finite number")
    return Fp8(codes, kind, scale, group)


def fp4(codes: NDArray[Any], cols: int, scale: F32, group: int, factor: float = 1.0) -> Lut4:
    """factor * scale * number of 4-bit floats, two a byte, the even column in the low half."""
    return Lut4(codes, cols, E2M1, scale, group, factor)
