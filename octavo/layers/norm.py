"""Normalisation of rows, or of heads when the weight is one head wide."""

from __future__ import annotations

from octavo.layers.base import Layer
from octavo.ops.contract import Ops, Param, Value


class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + eps) * (weight + offset). Zhang & Sennrich 2019; `offset` 1 is Gemma's."""

    def __init__(self, width: int, eps: float, *, offset: float = 0.0) -> None:
        self.weight = Param((width,))
        self.eps = eps
        self.offset = offset

    def __call__(self, op: Ops, x: Value) -> Value:
        return op.rms_norm(x, self.weight, self.eps, self.offset)


class LayerNorm(Layer):
    """(x - mean) / sqrt(var + eps) * weight + bias. Ba et al. 2016."""

    def __init__(self, width: int, eps: float, *, bias: bool = True) -> None:
        self.weight = Param((width,))
        self.bias = Param((width,)) if bias else None
        self.eps = eps

    def __call__(self, op: Ops, x: Value) -> Value:
        return op.layer_norm(x, self.weight, self.bias, self.eps)
