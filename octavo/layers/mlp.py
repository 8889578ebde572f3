"""The two feed-forward layers of dense decoders."""

from __future__ import annotations

from octavo.layers.base import Layer
from octavo.layers.linear import Linear
from octavo.ops.contract import Ops, Value


class GatedMLP(Layer):
    """down(act(gate(x)) * up(x)); gate and up are one matrix. Shazeer 2020.

    `down_bias`: another choice for the second matrix. `gate_last`: up stands above gate.
    """

    def __init__(
        self,
        hidden: int,
        ffn: int,
        act: str,
        *,
        bias: bool = False,
        down_bias: bool | None = None,
        gate_last: bool = False,
    ) -> None:
        self.gate_up = Linear(hidden, (ffn, ffn), bias=bias)
        self.down = Linear(ffn, hidden, bias=bias if down_bias is None else down_bias, axis=1)
        self.act = act
        self.gate_last = gate_last

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        if self.gate_last:
            up, gate = self.gate_up.split(op, x)
            return self.down(op, op.mul(op.activation(gate, self.act), up))
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
