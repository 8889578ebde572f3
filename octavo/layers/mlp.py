"""The two feed-forward layers of dense decoders."""

from __future__ import annotations

from octavo.layers.base import Layer
from octavo.layers.linear import Linear
from octavo.ops.contract import Ops, Value


class GatedMLP(Layer):
    """down(act(gate(x)) * up(x)); gate and up are one matrix. Shazeer 2020."""

    def __init__(self, hidden: int, ffn: int, act: str, *, bias: bool = False) -> None:
        self.gate_up = Linear(hidden, (ffn, ffn), bias=bias)
        self.down = Linear(ffn, hidden, bias=bias, axis=1)
        self.act = act

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        return self.down(op, op.gated(self.gate_up(op, x), self.act))


class MLP(Layer):
    """down(act(up(x))). Vaswani et al. 2017."""

    def __init__(self, hidden: int, ffn: int, act: str, *, bias: bool = True) -> None:
        self.up = Linear(hidden, ffn, bias=bias)
        self.down = Linear(ffn, hidden, bias=bias, axis=1)
        self.act = act

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        return self.down(op, op.activation(self.up(op, x), self.act))
