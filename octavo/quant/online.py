"""Quantization at load: which matrices of a dense checkpoint are rounded, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.log import logger
from octavo.ops.contract import Param
from octavo.ops.layouts import Dense, Online

log = logger(__name__)

METHODS = ("int8", "int4")
"""What --quantization offers for dense checkpoints."""

STAND_INS = {"fp8": "int8", "bitsandbytes": "int4"}
"""vLLM's names for rounding at load; the same number of bits in this machine's kernels."""

GROUPS = {8: 128, 4: 32}
"""Columns that share a scale: 8.125 and 4.5 bits a weight."""


@dataclass(frozen=True)
class Rounding:
    """How one matrix is rounded."""

    bits: int
    group: int

    def __call__(self, tensor: Dense) -> Online:
        return Online(tensor, self.bits, self.group)

    def nbytes(self, param: Param) -> int:
        """Of what the matrix becomes."""
        cols = param.shape[-1]
        rows = math.prod(param.shape[:-1])
        return rows * (-(-cols * self.bits // 8) + 2 * -(-cols // self.group))


def method_of(name: str) -> str:
    """What a name for rounding at load means here: one of METHODS. ConfigError for another."""
    if name in STAND_INS:
        log.info("--quantization %s: plain weights are rounded to %s here.", name, STAND_INS[name])
        return STAND_INS[name]
    if name not in METHODS:
        raise ConfigError(
            f"--quantization {name}: the checkpoint is not quantized, and only {' and '.join(METHODS)} "
            "are made from plain weights.",
            hint=f"Use one of these, or a checkpoint that is stored as {name}.",
        )
    return name
