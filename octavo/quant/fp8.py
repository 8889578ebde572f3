"""Checkpoints of 8-bit floats: `quant_method` fp8 (transformers, DeepSeek) and fbgemm_fp8.

A module X stands as `X.weight`, 8-bit floats [rows, cols], beside one of

- `X.weight_scale`: one number for the matrix or one for each row;
- `X.weight_scale_inv`: one for each block of `weight_block_size`, the last ones of a row or column cut short.

Stacks of experts are `X` [experts, rows, cols] and `X_scale_inv` [experts, ...].

The number is weight * scale; despite its name that of weight_scale_inv multiplies too. `X.input_scale` (once
`X.act_scale`), with which others round activations to 8 bits, is not used: activations are floats here.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Layout
from octavo.quant import small_floats
from octavo.quant.format import Tensors


class Fp8Checkpoint:
    """A checkpoint of 8-bit floats."""

    method = "fp8"
    unused: tuple[str, ...] = (
        r"\.(input|output|act)_scale(_ub)?$",
        r"_activation_scale$",
        r"\.[kqv]_scale$",
        r"\.kv_scale$",
    )
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        self._block = block_of(config.get("weight_block_size"), "weight_block_size")

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}_scale_inv" in present:
            return ("", "_scale_inv")
        for scale in ("weight_scale_inv", "weight_scale"):
            if f"{stem}.{scale}" in present:
                return ("weight", scale)
        return ()

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        weight, suffix = tensors.suffixes
        shape = tensors.stored(suffix).shape
        block = self._block if suffix.endswith("_scale_inv") and len(shape) == 2 else None
        if not weight and shape == (2, 1) and (block is None or -(-rows // block[0]) != 2):
            # One for gate and one for up, which stand below each other.
            block = (-(-rows // 2), cols)
        scale, group = small_floats.spread(tensors, suffix, rows, cols, block=block)
        return small_floats.fp8(tensors, rows, cols, scale, group, weight)


def block_of(value: object, key: str) -> tuple[int, int] | None:
    """A block's (rows, columns) of a quantization config, also written "128x128", or None. UnsupportedModel
    for what is none.
    """
    if value is None:
        return None
    if isinstance(value, str) and (sizes := re.fullmatch(r"(\d{1,8})x(\d{1,8})", value)):
        value = [int(size) for size in sizes.groups()]
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 1 << 24 for n in value):
        return value[0], value[1]
    raise UnsupportedModel(f"The quantization config has {key} {value!r:.60}, expected two positive numbers.")
