"""Codes that are whole numbers: 8, 4, 5 and 6 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32
from octavo.ops.layouts.groups import Grouped, Order, Scale, check_groups


@dataclass(frozen=True)
class Activation:
    """How a checkpoint wants the input of a matrix rounded to int8 (W8A8): scale * (code - zero).

    `scale` None: every token has a scale of its own. Symmetric: its largest size / 127.5, zero 0. Otherwise
    (largest - smallest, 0 among both) / 255 and a zero that makes 0 a code. With a `scale`, that and `zero`
    hold for all tokens. (The rule of the compressed-tensors library.)
    """

    symmetric: bool = True
    scale: float | None = None
    zero: int = 0

    def __post_init__(self) -> None:
        if self.scale is not None and not (0 < self.scale < float("inf")):
            raise ValueError(f"an activation scale of {self.scale}")
        if not -128 <= self.zero <= 127 or (self.zero and (self.symmetric or self.scale is None)):
            raise ValueError(f"an activation zero of {self.zero}")


@dataclass(frozen=True)
class Int8(Grouped):
    """scale * (code - zero), or scale * code + minimum: codes int8 [rows, cols].

    `scale`, `zero` and `minimum` are float32 [rows, groups]; group g is columns g*group .. (the last may be
    shorter), one group for a scale per row. At most one of zero and minimum. `activation`: how the checkpoint
    rounds the inputs; None leaves it to the backend.
    """

    codes: NDArray[np.int8]
    scale: Scale
    group: int
    zero: F32 | None = None
    minimum: Scale | None = None
    activation: Activation | None = None
    order: Order | None = None
    kind: ClassVar[str] = "int8"

    @property
    def half_blocks(self) -> bool:
        return self.activation is None

    def __post_init__(self) -> None:
        check_groups(self)


@dataclass(frozen=True)
class Int4Group(Grouped):
    """4-bit codes 0 .. 15, two a byte (even column in the low half): codes uint8 [rows, (cols + 1) / 2].

    The number is scale * (code - zero), or scale * code + minimum; without both, zero is 8. `scale`, `zero`,
    `minimum`: float32 [rows, groups]. `order`: stored column j is column order[j] of the matrix (-1: none).
    """

    codes: NDArray[np.uint8]
    cols: int
    scale: Scale
    group: int
    zero: F32 | None = None
    minimum: Scale | None = None
    order: Order | None = None
    kind: ClassVar[str] = "int4"
    halves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_groups(self)

    def numbers(self) -> F32:
        codes = self.raw_codes().astype(np.float32)
        return codes if self.zero is not None or self.minimum is not None else codes - np.float32(8)


@dataclass(frozen=True)
class IntBits(Grouped):
    """Codes 0 .. 2**bits - 1 of 5 or 6 bits, here one a byte: codes uint8 [rows, cols].

    The number is scale * (code - zero), or scale * code + minimum; without both, zero is 2**(bits - 1).
    """

    codes: NDArray[np.uint8]
    bits: int
    scale: Scale
    group: int
    zero: F32 | None = None
    minimum: Scale | None = None
    order: Order | None = None

    def __post_init__(self) -> None:
        check_groups(self)
        if self.bits not in (5, 6) or (self.codes.size and int(self.codes.max()) >> self.bits):
            raise ValueError(f"codes up to {int(self.codes.max(initial=0))} in {self.bits} bits")

    @property
    def nbytes(self) -> int:
        """Of what it becomes."""
        return super().nbytes - self.codes.nbytes + -(-self.codes.size * self.bits // 8)

    def numbers(self) -> F32:
        codes = self.codes.astype(np.float32)
        middle = np.float32(1 << (self.bits - 1))
        return codes if self.zero is not None or self.minimum is not None else codes - middle
