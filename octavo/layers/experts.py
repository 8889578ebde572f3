"""Mixtures of experts in place of the feed-forward layer."""

from __future__ import annotations

from octavo.layers.base import Layer
from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP
from octavo.ops.contract import ExpertsParams, ExpertsSpec, Ops, Param, Value


class Experts(Layer):
    """sum of share(x) * expert(x) over the experts that the router chooses; plus what `shared` makes of x."""

    def __init__(
        self,
        hidden: int,
        ffn: int,
        spec: ExpertsSpec,
        *,
        bias: bool = False,
        router_bias: bool = False,
        shared: Layer | None = None,
    ) -> None:
        count = spec.experts
        self.router = Linear(hidden, count, bias=router_bias, axis=None)
        self.router.weight.exact = True
        self.gate = Param((count, ffn, hidden), axis=1, kind="experts")
        self.up = Param((count, ffn, hidden), axis=1, kind="experts")
        self.down = Param((count, hidden, ffn), axis=2, kind="experts")
        self.gate_bias = Param((count, ffn), axis=1) if bias else None
        self.up_bias = Param((count, ffn), axis=1) if bias else None
        self.down_bias = Param((count, hidden)) if bias else None
        self.shared = shared
        self.spec = spec

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        weights = ExpertsParams(self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias)
        y = op.experts(x, self.router(op, x), weights, self.spec)
        return op.add(y, self.shared(op, x)) if self.shared else y


class SharedExpert(Layer):
    """sigmoid(scores(x)) * expert(x), an expert that every token goes to. Qwen Team 2024 (Qwen1.5-MoE)."""

    def __init__(self, hidden: int, ffn: int, act: str) -> None:
        self.scores = Linear(hidden, 1, axis=None)
        self.scores.weight.exact = True
        self.expert = GatedMLP(hidden, ffn, act)

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        return op.sigmoid_gate(self.expert(op, x), self.scores(op, x))
