"""Quantization at load: which matrices of a dense checkpoint are rounded, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from octavo.errors import ConfigError
from octavo.log import logger
from octavo.ops.contract import Param
from octavo.ops.layouts import Dense, Layout, Online
from octavo.quant.nf4 import BLOCK, SMALLEST_GROUP, round_nf4

log = logger(__name__)

METHODS = ("int8", "int4", "bitsandbytes")
"""What --quantization offers for dense checkpoints."""

STAND_INS = {"fp8": "int8"}
"""vLLM's names for rounding at load; the same number of bits in this machine's kernels."""

GROUPS = {8: 128, 4: 32}
"""Columns that share a scale: 8.125 and 4.5 bits a weight."""


@dataclass(frozen=True)
class Rounding:
    """How one matrix is rounded."""

    bits: int
    group: int
    apart: ClassVar[bool] = False
    """Whether the tensors that a Param joins are rounded one by one."""

    def __call__(self, tensor: Dense) -> Layout:
        return Online(tensor, self.bits, self.group)

    def nbytes(self, param: Param) -> int:
        """Of what the matrix becomes."""
        cols = param.shape[-1]
        rows = math.prod(param.shape[:-1])
        return rows * (-(-cols * self.bits // 8) + 2 * -(-cols // self.group))


@dataclass(frozen=True)
class NormalFloat(Rounding):
    """As bitsandbytes rounds to NF4: a tensor by itself, a float32 size for `group` of its numbers."""

    bits: int = 4
    group: int = BLOCK
    apart: ClassVar[bool] = True

    def __call__(self, tensor: Dense) -> Layout:
        return round_nf4(tensor)

    def nbytes(self, param: Param) -> int:
        """Of what the matrix becomes: groups end with rows here, and are as fine as both ends ask."""
        cols = param.shape[-1]
        group = math.gcd(self.group, cols)
        rows = math.prod(param.shape[:-1])
        return rows * (4 * cols if group < SMALLEST_GROUP else -(-cols // 2) + 4 * -(-cols // group))


def method_of(name: str) -> str:
    """What a name for rounding at load means here: one of METHODS. ConfigError for another."""
    if name in STAND_INS:
        log.info("--quantization %s: plain weights are rounded to %s here.", name, STAND_INS[name])
        return STAND_INS[name]
    if name not in METHODS:
        *first, last = METHODS
        raise ConfigError(
            f"--quantization {name}: the checkpoint is not quantized, and only {', '.join(first)} and {last} "
            "are made from plain weights.",
            hint=f"Use one of these, or a checkpoint that is stored as {name}.",
        )
    return name
