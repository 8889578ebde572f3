"""Residual blocks: how attention and feed-forward join the stream. `norm` makes one norm layer a call."""

from __future__ import annotations

from collections.abc import Callable

from octavo.layers.base import Layer
from octavo.ops.contract import Ops, Value


class PreNorm(Layer):
    """x += attention(norm(x)); x += mlp(norm(x)). Xiong et al. 2020."""

    def __init__(self, attention: Layer, mlp: Layer, norm: Callable[[], Layer]) -> None:
        self.attention_norm = norm()
        self.attention = attention
        self.mlp_norm = norm()
        self.mlp = mlp

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        x = op.add(x, self.attention(op, self.attention_norm(op, x)))
        return op.add(x, self.mlp(op, self.mlp_norm(op, x)))


class Sandwich(Layer):
    """A norm before and one after each: x += norm(attention(norm(x))), and so for mlp. Ding et al. 2021
    (CogView).
    """

    def __init__(self, attention: Layer, mlp: Layer, norm: Callable[[], Layer]) -> None:
        self.attention_norm = norm()
        self.attention = attention
        self.attention_post_norm = norm()
        self.mlp_norm = norm()
        self.mlp = mlp
        self.mlp_post_norm = norm()

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        x = op.add(x, self.attention_post_norm(op, self.attention(op, self.attention_norm(op, x))))
        return op.add(x, self.mlp_post_norm(op, self.mlp(op, self.mlp_norm(op, x))))
