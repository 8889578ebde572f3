"""torchao's tensors, as transformers saves them. A weight `X.weight` [rows, cols] stands as `X._weight_qdata`
and more, one tensor for each part of the subclass; in a `.bin` under the same names (weights/opcodes.py).
Which subclass it is shows in the parts:

- Int8Tensor, IntxUnpackedToInt8Tensor: `qdata` int8 [rows, cols], codes of 1 to 8 bits, one a byte;
  `scale` and perhaps `zero_point` [rows / a, cols / b], one for a block of a rows and b columns;
- Float8Tensor: `qdata` 8-bit floats and `scale`, likewise;
- Int4Tensor: `qdata` int8 [rows, cols / 2], codes -8 .. 7, the even column in the low half; `scale` and
  `zero_point` floats [cols / group, rows]: scale * code + zero_point;
- Int4TilePackedTo4dTensor (tinygemm's): `qdata` int32 [rows / 8, cols / 128, 32, 4], padded; `scale_and_zero`
  [cols / group, rows, 2]: scale * (code - 8) + zero;
- Int4PlainInt32Tensor (of XPUs): `qdata` int32 [rows, cols / 8], codes 0 .. 15 with the first lowest; `scale`
  floats and `zero_point` int8 [cols / group, rows];
- MXTensor, NVFP4Tensor: `qdata` 8-bit floats, or uint8 with two 4-bit floats, the even column low; `scale`
  [rows, cols / block] of e8m0 or e4m3, or in the tiles that cuBLAS wants; perhaps `per_tensor_scale`.

`act_pre_scale` [cols] multiplies the inputs: then the numbers are plain ones, each column times its factor.

`quant_type` in the config says how inputs are rounded, for all modules or by name.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Activation, Dense, Int4Group, Int8, Layout, pack4
from octavo.quant import small_floats
from octavo.quant.codes import F32, U8, grouped, turned
from octavo.quant.format import Tensors
from octavo.quant.patterns import Pattern

_Q, _SCALE, _ZERO, _PAIR = (f"._weight_{part}" for part in ("qdata", "scale", "zero_point", "scale_and_zero"))
_STATIC, _PRE = "._weight_act_quant_scale", "._weight_act_pre_scale"
_OVER = "._weight_per_tensor_scale"
_MORE = (_SCALE, _ZERO, _PAIR, _STATIC, _PRE, _OVER, "._weight_act_quant_zero_point")
_INPUTS = {
    "Int8DynamicActivationInt8WeightConfig": "SYMMETRIC",
    "Int8StaticActivationInt8WeightConfig": "SYMMETRIC",
    "Int8DynamicActivationIntxWeightConfig": "ASYMMETRIC",
    "int8_dynamic_activation_int8_weight": "SYMMETRIC",
}
"""Kinds of quantization that round inputs to int8, and how where they do not say."""
_SMALL_SCALES = ("float8_e4m3fn", "float8_e8m0fnu")
_LANES, _PER_LANE, _TILE_ROWS, _TILE_COLS = 32, 4, 8, 128


class TorchAo:
    """A torchao checkpoint."""

    method = "torchao"
    unused: tuple[str, ...] = (r"\._weight_act_(quant_zero_point|per_tensor_scale)$",)
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        said = config.get("quant_type")
        kind = said.get("default") if isinstance(said, dict) else said
        if not isinstance(kind, dict | str):
            raise UnsupportedModel(f"torchao's quant_type {said!r:.60} is not known.")
        by_name = _inside(kind).get("fqn_to_config") or _inside(kind).get("module_fqn_to_config")
        kinds = by_name if isinstance(by_name, dict) else {"_default": kind}
        self._inputs = {name: _activation(one) for name, one in kinds.items()}
        self._patterns = [
            (Pattern(name.removeprefix("re:"), "torchao's quant_type has"), how)
            for name, how in self._inputs.items()
            if name.startswith("re:")
        ]

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}{_Q}" not in present:
            return ()
        return (_Q, *(suffix for suffix in _MORE if f"{stem}{suffix}" in present))

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        layout = self._read(tensors, rows, cols)
        if _PRE not in tensors:
            return layout
        factors = tensors.floats(_PRE, tensors.stored(_PRE).shape).reshape(-1)
        if factors.size not in (1, cols):
            raise tensors.error(_PRE, f"holds {factors.size} numbers, expected {cols}")
        return Dense(np.ascontiguousarray(layout.dequantize() * factors, np.float32), "float32")

    def _read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        stored = tensors.stored(_Q)
        if stored.dtype == "int32" and len(stored.shape) == 4 and _PAIR in tensors:
            return _tiles(tensors, rows, cols)
        if _SCALE in tensors and tensors.stored(_SCALE).dtype in _SMALL_SCALES:
            return _microscaled(tensors, rows, cols)
        if stored.dtype.startswith("float8_e") and _SCALE in tensors:
            scale, group = _spread(tensors, _SCALE, rows, cols)
            return small_floats.fp8(tensors, rows, cols, scale, group, _Q)
        if stored.dtype in ("int8", "uint8") and _SCALE in tensors:
            if stored.shape == (rows, cols) and stored.dtype == "int8":
                return self._one_a_byte(tensors, rows, cols)
            floats = _ZERO in tensors and tensors.stored(_ZERO).dtype not in ("int8", "int32")
            if floats and stored.shape == (rows, (cols + 1) // 2):
                return _two_a_byte(tensors, rows, cols)
        whole = _ZERO in tensors and tensors.stored(_ZERO).dtype == "int8"
        if stored.dtype == "int32" and stored.shape == (rows, -(-cols // 8)) and whole:
            return _eight_a_word(tensors, rows, cols)
        raise UnsupportedModel(
            f"torchao's {stored.dtype} {list(stored.shape)} for {tensors.stem} [{rows}, {cols}] is not read.",
            hint="Supported: Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor, Int4Tensor, "
            "Int4TilePackedTo4dTensor, Int4PlainInt32Tensor, MXTensor, NVFP4Tensor.",
        )

    def _one_a_byte(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        """Codes of int8; those that 4 bits hold take no more than 4."""
        codes = tensors.ints(_Q, "int8", (rows, cols))
        scale, group = _spread(tensors, _SCALE, rows, cols)
        zero = _spread(tensors, _ZERO, rows, cols)[0] if _ZERO in tensors else None
        if zero is not None and zero.shape != scale.shape:
            raise tensors.error(
                _ZERO, f"has {zero.shape[1]} groups, expected {scale.shape[1]} as of the scales"
            )
        zero = zero if zero is not None and zero.any() else None
        inputs = self._of(tensors.stem)
        if inputs is None and codes.min(initial=0) >= -8 and codes.max(initial=0) <= 7:
            down = turned((codes + np.int8(8)).view(np.uint8))
            return grouped(down, 4, scale, None if zero is None else zero + 8, group, None)
        if _STATIC in tensors:
            given = float(tensors.floats(_STATIC, tensors.stored(_STATIC).shape).reshape(-1)[0])
            if not given > 0:
                raise tensors.error(_STATIC, f"holds {given}, expected a positive number")
            inputs = Activation(True, given)
        return Int8(codes, scale, group, zero, activation=inputs)

    def _of(self, stem: str) -> Activation | None:
        """How the inputs of a module are rounded: by its name, by a pattern, or as all others are."""
        for name in (stem, f"{stem}.weight"):
            if name in self._inputs:
                return self._inputs[name]
        for pattern, how in self._patterns:
            if pattern.matches(stem) or pattern.matches(f"{stem}.weight"):
                return how
        return self._inputs.get("_default")


def _inside(kind: object) -> dict[str, Any]:
    """What a config says of itself."""
    said = kind.get("_data") if isinstance(kind, dict) else None
    return said if isinstance(said, dict) else {}


def _activation(kind: object) -> Activation | None:
    """How a kind of quantization rounds inputs to int8; floats of few bits stay floats here."""
    name = kind.get("_type") if isinstance(kind, dict) else kind
    if not isinstance(name, str) or name not in _INPUTS:
        return None
    mapping = _inside(kind).get("act_mapping_type")
    said = mapping.get("_data") if isinstance(mapping, dict) else None
    return Activation((said or _INPUTS[name]) == "SYMMETRIC")


def _spread(tensors: Tensors, suffix: str, rows: int, cols: int) -> tuple[F32, int]:
    """([rows, groups], columns in a group) of numbers that stand for blocks of equal size."""
    tensor = tensors.stored(suffix)
    shape = tensor.shape if len(tensor.shape) == 2 else (len(tensor.data.reshape(-1)), 1)
    if not shape[0] or not shape[1] or rows % shape[0] or cols % shape[1]:
        raise tensors.error(suffix, f"has shape {list(tensor.shape)}, which shares out no [{rows}, {cols}]")
    if tensor.dtype in ("int8", "int32", "int64"):
        values = tensor.data.astype(np.float32)
    else:
        values = tensors.floats(suffix, tensor.shape)
    by_row = np.repeat(values.reshape(shape), rows // shape[0], axis=0)
    return np.ascontiguousarray(by_row, np.float32), cols // shape[1]


def _groups(tensors: Tensors, cols: int) -> int:
    """How many groups of equal size the columns are in, by the scales [groups, rows]."""
    shape = tensors.stored(_SCALE).shape
    if len(shape) != 2 or not shape[0] or cols % shape[0]:
        raise tensors.error(_SCALE, f"has shape {list(shape)}, which shares out no {cols} columns")
    return shape[0]


def _two_a_byte(tensors: Tensors, rows: int, cols: int) -> Int4Group:
    """Signed codes become unsigned ones when their upper bit is turned over."""
    codes = tensors.get(_Q, ("int8", "uint8"), (rows, (cols + 1) // 2)).data.view(np.uint8) ^ np.uint8(0x88)
    groups = _groups(tensors, cols)
    scale = np.ascontiguousarray(tensors.floats(_SCALE, (groups, rows)).T)
    middle = np.ascontiguousarray(tensors.floats(_ZERO, (groups, rows)).T)
    return _about(codes, cols, scale, middle, cols // groups)


def _eight_a_word(tensors: Tensors, rows: int, cols: int) -> Int4Group:
    codes = tensors.ints(_Q, "int32", (rows, None)).view(np.uint8)[:, : (cols + 1) // 2]
    groups = _groups(tensors, cols)
    scale = np.ascontiguousarray(tensors.floats(_SCALE, (groups, rows)).T)
    zero = np.ascontiguousarray(tensors.ints(_ZERO, "int8", (groups, rows)).T.astype(np.float32))
    return Int4Group(np.ascontiguousarray(codes), cols, scale, cols // groups, zero)


def _microscaled(tensors: Tensors, rows: int, cols: int) -> Layout:
    """4- and 8-bit floats whose scales are floats of 8 bits."""
    stored = tensors.stored(_Q)
    group = 16 if tensors.stored(_SCALE).dtype == "float8_e4m3fn" else 32
    wide = -(-cols // group)
    if tensors.stored(_SCALE).shape == (rows, wide):
        scale = small_floats.scales(tensors, _SCALE, (rows, wide))
    else:
        scale = _untiled(small_floats.scales(tensors, _SCALE, (-(-rows // 128) * 32, -(-wide // 4) * 16)))
        scale = np.ascontiguousarray(scale[:rows, :wide])
    if stored.dtype.startswith("float8_e"):
        return small_floats.fp8(tensors, rows, cols, scale, group, _Q)
    over = np.ones(1, np.float32)
    if _OVER in tensors:
        over = tensors.floats(_OVER, tensors.stored(_OVER).shape).reshape(-1)
        if over.size != 1 or not over[0] > 0:
            raise tensors.error(_OVER, f"holds {over[:4].tolist()}, expected one positive number")
    codes = tensors.ints(_Q, "uint8", (rows, (cols + 1) // 2))
    return small_floats.fp4(codes, cols, scale, group, float(over[0]))


def _untiled(tiles: F32) -> F32:
    """Scales in order, [128 a, 4 b], from the tiles [32 a, 16 b] that cuBLAS wants: tile after tile, each of
    128 rows and 4 columns, row 32 k + i of it at [i, 4 k]. (Its manual: block scaling factors layout.)
    """
    high, wide = tiles.shape[0] // 32, tiles.shape[1] // 16
    split = tiles.reshape(high, wide, 32, 4, 4)  # tile, tile, i, k, column
    return split.transpose(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)


def _about(codes: U8, cols: int, scale: F32, middle: F32, group: int) -> Int4Group:
    """scale * (code - 8) + middle."""
    if not middle.any():
        return Int4Group(codes, cols, scale, group)
    return Int4Group(codes, cols, scale, group, minimum=middle - np.float32(8) * scale)


def _tiles(tensors: Tensors, rows: int, cols: int) -> Int4Group:
    """tinygemm's tiles of 8 rows and 128 columns: a lane t has row t / 4, and in each of its 4 words the
    columns 0, 8, 16, 24, 1, 9, 17, 25 from 2 * (t % 4) of the next 32, from the lowest bits up.
    """
    high, wide = -(-rows // _TILE_ROWS), -(-cols // _TILE_COLS)
    sizes = (range(high, high + 2), range(wide, wide + 8), _LANES, _PER_LANE)
    words: NDArray[Any] = tensors.ints(_Q, "int32", sizes).view(np.uint32)
    high, wide = words.shape[:2]
    lanes = words.reshape(high, wide, _TILE_ROWS, 4, _PER_LANE)  # tile, tile, row, t % 4, word
    codes = np.empty((high, _TILE_ROWS, wide, _PER_LANE, 4, 8), np.uint8)  # ..., word, t % 4, field
    for field in range(8):
        codes[..., field] = (lanes >> np.uint32(4 * field) & np.uint32(15)).transpose(0, 2, 1, 4, 3)
    # A field's column: 2 * (t % 4) + 8 * (field % 4) + field // 4.
    split = codes.reshape(high, _TILE_ROWS, wide, _PER_LANE, 4, 2, 4).transpose(0, 1, 2, 3, 6, 4, 5)
    flat = split.reshape(high * _TILE_ROWS, wide * _TILE_COLS)[:rows, :cols]
    padded = wide * _TILE_COLS
    shape = tensors.stored(_PAIR).shape
    if len(shape) != 3 or not shape[0] or padded % shape[0]:
        raise tensors.error(_PAIR, f"has shape {list(shape)}, which shares out no {padded} columns")
    group = padded // shape[0]
    pairs = tensors.floats(_PAIR, (shape[0], range(rows, high * _TILE_ROWS + 1), 2))
    pairs = pairs[: -(-cols // group), :rows].transpose(2, 1, 0)
    return _about(pack4(flat), cols, np.ascontiguousarray(pairs[0]), np.ascontiguousarray(pairs[1]), group)
