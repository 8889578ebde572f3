"""Checkpoints whose experts are 4-bit floats (gpt-oss): `quant_method` mxfp4.

A stack X of all experts' matrices [rows, cols] stands as `X_blocks` uint8 [experts, rows, cols / 32, 16], two
codes a byte, the even column in the low half, and `X_scales` uint8 [experts, rows, cols / 32], powers of two.
OCP Microscaling Formats v1.0. Everything else is plain.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from octavo.ops.layouts import Layout
from octavo.quant import small_floats
from octavo.quant.format import Tensors

_GROUP = 32


class Mxfp4:
    """An MXFP4 checkpoint. Its config says nothing that the tensors do not show."""

    method = "mxfp4"
    unused: tuple[str, ...] = ()
    growth = 18 / 17
    """A scale takes two bytes here."""

    def __init__(self, config: dict[str, Any]) -> None:
        pass

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        return ("_blocks", "_scales") if f"{stem}_blocks" in present else ()

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        groups = -(-cols // _GROUP)
        blocks = tensors.ints("_blocks", "uint8", (rows, groups, _GROUP // 2))
        scale = small_floats.scales(tensors, "_scales", (rows, groups))
        return small_floats.fp4(blocks.reshape(rows, -1)[:, : -(-cols // 2)], cols, scale, _GROUP)
