"""Matrices and tables."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.layers.base import Layer
from octavo.ops.contract import Ops, Param, Value


class Linear(Layer):
    """x [tokens, in] -> x @ weight.T + bias [tokens, sum(out)].

    `out` may be several widths: matrices that read the same input stand in one Param, one below the other,
    and :meth:`split` takes the result apart. `axis` is the axis that sharding cuts: 0 (each rank makes some
    of the outputs) or 1 (each rank reads some of the inputs).
    """

    def __init__(
        self, inner: int, out: int | Sequence[int], *, bias: bool = False, axis: int | None = 0
    ) -> None:
        self.widths = (out,) if isinstance(out, int) else tuple(out)
        rows = sum(self.widths)
        self.weight = Param((rows, inner), axis=axis, kind="matrix", parts=self.widths)
        # A matrix cut along its inputs adds its bias once, so that bias stays whole.
        self.bias = Param((rows,), axis=0 if axis == 0 else None, parts=self.widths) if bias else None

    def __call__(self, op: Ops, x: Value) -> Value:
        return op.linear(x, self.weight, self.bias)

    def split(self, op: Ops, x: Value) -> tuple[Value, ...]:
        """The outputs of each of the widths."""
        return op.split(op.linear(x, self.weight, self.bias), self.widths)


class Embedding(Layer):
    """ids [tokens] -> rows of a table [tokens, width]."""

    def __init__(self, rows: int, width: int, *, axis: int | None = 0) -> None:
        self.weight = Param((rows, width), axis=axis, kind="table")

    def __call__(self, op: Ops, x: Value) -> Value:
        return op.embedding(x, self.weight)


class TiedHead(Layer):
    """The output matrix that is the embedding's table: the same Param, read once as rows and once as a
    matrix.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.weight = embedding.weight
        self.weight.kind = "matrix"

    def __call__(self, op: Ops, x: Value) -> Value:
        return op.linear(x, self.weight)
