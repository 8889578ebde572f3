"""NVIDIA's Model Optimizer, as its unified export writes it. A module X of [rows, cols] stands in one of
these forms, which show in its tensors:

- FP8: `X.weight` of 8-bit floats, `X.weight_scale` one number, one a row, or one a block [a, b], also as
  [a, 1, b, 1];
- W8A16, W8A8: `X.weight` int8, `X.weight_scale` one a row, and for W8A8 `X.input_scale`, one for all inputs;
- W4A16: `X.weight` uint8 [rows / 2, cols], codes -8 .. 7, the even row in the low half; `X.weight_scale`
  [rows, groups];
- NVFP4: `X.weight` uint8, two 4-bit floats a byte, the even column low; `X.weight_scale` of 8-bit floats, one
  for 16 columns; `X.weight_scale_2`, one number over all of them. The number is the product of the three;
- MXFP4: the same with `X.weight_scale` uint8, powers of two, one for 32 columns.

AWQ and SmoothQuant multiply inputs by `X.pre_quant_scale` [cols] where that is not part of the norm before:
then the numbers are plain ones, each column times its factor. `X.input_scale` of floats is not used:
activations are floats here.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Activation, Dense, Int4Group, Int8, Layout, pack4
from octavo.quant import small_floats
from octavo.quant.format import Tensors

_ALGORITHMS = (
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8", "W4A16_NVFP4"),
    *("MXFP4", "W4A8_MXFP4_FP8", "W4A16_AWQ", "W8A16", "W8A8_SQ_PER_CHANNEL", "MIXED_PRECISION"),
)
_BLOCK = 128
_PRE = "pre_quant_scale"
_OPTIONAL = ("weight_scale_2", _PRE)


class ModelOpt:
    """A checkpoint of Model Optimizer; `quant_algo` is checked, the tensors say the rest."""

    method = "modelopt"
    unused: tuple[str, ...] = (
        r"\.(input|output)_scale$",
        r"\.([kqv]|kv)_(proj\.)?(scale|bias|[kv]_scale|[kv]_bias)$",
    )
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        inside = config.get("quantization")
        said = inside if isinstance(inside, dict) else config
        algorithm = said.get("quant_algo")
        # Some of them it writes in small letters.
        known = isinstance(algorithm, str) and algorithm.upper() in _ALGORITHMS
        if not known and not (algorithm is None and said.get("kv_cache_quant_algo")):
            raise UnsupportedModel(
                f"Model Optimizer's quant_algo {algorithm!r:.60} is not supported.",
                hint=f"Supported: {', '.join(_ALGORITHMS)}.",
            )

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.weight_scale" not in present:
            return ()
        more = [suffix for suffix in (*_OPTIONAL, "input_scale") if f"{stem}.{suffix}" in present]
        return ("weight", "weight_scale", *more)

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        layout = _read(tensors, rows, cols)
        if _PRE not in tensors:
            return layout
        factors = tensors.floats(_PRE, (cols,))
        return Dense(np.ascontiguousarray(layout.dequantize() * factors, np.float32), "float32")


def _read(tensors: Tensors, rows: int, cols: int) -> Layout:
    stored = tensors.stored("weight")
    if stored.dtype == "int8":
        return _int8(tensors, rows, cols)
    if stored.dtype != "uint8":
        return _fp8(tensors, rows, cols)
    powers = tensors.stored("weight_scale").dtype in ("uint8", "float8_e8m0fnu")
    if "weight_scale_2" not in tensors and not powers:
        return _int4(tensors, rows, cols)
    codes = tensors.ints("weight", "uint8", (rows, (cols + 1) // 2))
    scale, group = small_floats.spread(tensors, "weight_scale", rows, cols, group=32 if powers else 16)
    if powers:
        return small_floats.fp4(codes, cols, scale, group)
    over = tensors.floats("weight_scale_2", tensors.stored("weight_scale_2").shape).reshape(-1)
    if over.size != 1 or not over[0] > 0:
        raise tensors.error("weight_scale_2", f"holds {over[:4].tolist()}, expected one positive number")
    return small_floats.fp4(codes, cols, scale, group, float(over[0]))


def _fp8(tensors: Tensors, rows: int, cols: int) -> Layout:
    shape = tensors.stored("weight_scale").shape
    if len(shape) == 4 and shape[1] == shape[3] == 1 and shape[0] and shape[2]:
        given = small_floats.scales(tensors, "weight_scale", shape).reshape(shape[0], shape[2])
        scale = np.repeat(given, _share(rows, shape[0]), axis=0)[:rows]
        return small_floats.fp8(tensors, rows, cols, scale, min(_share(cols, shape[2]), cols))
    block = None
    if len(shape) == 2 and 1 < shape[0] < rows and shape[1]:
        block = (_share(rows, shape[0]), _share(cols, shape[1]))
    scale, group = small_floats.spread(tensors, "weight_scale", rows, cols, block=block)
    return small_floats.fp8(tensors, rows, cols, scale, group)


def _share(size: int, parts: int) -> int:
    """Rows or columns of a block: 128, the last one cut short, where so many of these are there."""
    return _BLOCK if -(-size // _BLOCK) == parts else -(-size // parts)


def _int8(tensors: Tensors, rows: int, cols: int) -> Int8:
    codes = tensors.ints("weight", "int8", (rows, cols))
    scale, group = small_floats.spread(tensors, "weight_scale", rows, cols)
    inputs = None
    if "input_scale" in tensors and _PRE not in tensors:
        given = tensors.floats("input_scale", tensors.stored("input_scale").shape).reshape(-1)
        if given.size != 1 or not given[0] > 0:
            raise tensors.error("input_scale", f"holds {given[:4].tolist()}, expected one positive number")
        inputs = Activation(True, float(given[0]))
    return Int8(codes, scale, group, activation=inputs)


def _int4(tensors: Tensors, rows: int, cols: int) -> Int4Group:
    pairs = tensors.ints("weight", "uint8", ((rows + 1) // 2, cols)) ^ np.uint8(0x88)
    codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, cols)[:rows]
    scale, group = small_floats.spread(tensors, "weight_scale", rows, cols)
    return Int4Group(pack4(codes), cols, scale, group)
