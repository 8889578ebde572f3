"""NVIDIA's Model Optimizer. A module X of [rows, cols] stands in one of these forms:

- FP8: `X.weight` of 8-bit floats, `X.weight_scale` one number or one a row;
- NVFP4: `X.weight` uint8, two 4-bit floats a byte, the even column low; `X.weight_scale` of 8-bit floats, one
  for 16 columns; `X.weight_scale_2`, one number over all of them. The number is the product of the three.

`X.input_scale`, with which others round activations, is not used: activations are floats here.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Layout
from octavo.quant import small_floats
from octavo.quant.format import Tensors

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4")


class ModelOpt:
    """A checkpoint of Model Optimizer; `quant_algo` is checked, the tensors say the rest."""

    method = "modelopt"
    unused: tuple[str, ...] = (r"\.(input|output)_scale$", r"\.([kqv]|kv)_(proj\.)?(scale|[kv]_scale)$")
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        inside = config.get("quantization")
        algorithm = (inside if isinstance(inside, dict) else config).get("quant_algo")
        if algorithm not in _ALGORITHMS:
            raise UnsupportedModel(
                f"Model Optimizer's quant_algo {algorithm!r:.60} is not supported.",
                hint=f"Supported: {', '.join(_ALGORITHMS)}.",
            )

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.weight_scale" not in present:
            return ()
        over = ("weight_scale_2",) if f"{stem}.weight_scale_2" in present else ()
        return ("weight", "weight_scale", *over)

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        if "weight_scale_2" not in tensors:
            scale, group = small_floats.spread(tensors, "weight_scale", rows, cols)
            return small_floats.fp8(tensors, rows, cols, scale, group)
        codes = tensors.ints("weight", "uint8", (rows, (cols + 1) // 2))
        scale, group = small_floats.spread(tensors, "weight_scale", rows, cols, group=16)
        over = tensors.floats("weight_scale_2", tensors.stored("weight_scale_2").shape).reshape(-1)
        if over.size != 1 or not over[0] > 0:
            raise tensors.error("weight_scale_2", f"holds {over[:4].tolist()}, expected one positive number")
        return small_floats.fp4(codes, cols, scale, group, float(over[0]))
