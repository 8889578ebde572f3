"""What follows the pooled rows of a model that gives vectors or labels in place of tokens."""

from __future__ import annotations

from octavo.layers.base import Layer
from octavo.layers.linear import Linear
from octavo.ops.contract import Ops, Value


class Dense(Layer):
    """act(linear(x)); `act` is an activation, tanh, or empty for none."""

    def __init__(self, inner: int, out: int, act: str, *, bias: bool = True) -> None:
        self.linear = Linear(inner, out, bias=bias, axis=None)
        self.act = act

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [rows, inner] -> [rows, out]."""
        y = self.linear(op, x)
        if not self.act:
            return y
        # tanh is the soft cap at 1.
        return op.softcap(y, 1.0) if self.act == "tanh" else op.activation(y, self.act)


class Head(Layer):
    """x [rows, hidden] -> [rows, width]: a dense layer, a norm, sentence-transformers' dense modules, the
    scores of the labels, each of them where there is one.
    """

    def __init__(
        self,
        dense: Dense | None = None,
        norm: Layer | None = None,
        score: Linear | None = None,
        modules: tuple[Dense, ...] = (),
    ) -> None:
        self.dense = dense
        self.norm = norm
        self.score = score
        self.modules = modules

    def __call__(self, op: Ops, x: Value) -> Value:
        for layer in (self.dense, self.norm, *self.modules, self.score):
            x = layer(op, x) if layer is not None else x
        return x
