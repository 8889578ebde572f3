"""Self-attention over the paged cache."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.base import Layer
from octavo.layers.linear import Linear
from octavo.ops.contract import AttentionSpec, Ops, Param, Rope, Value


class Attention(Layer):
    """Grouped-query attention (Ainslie et al. 2023): one matrix for query, key and value, one for the
    output.

    Variation comes in as objects: `rope` or None, `q_norm`/`k_norm` applied before the rotation (one head
    wide: head by head; as wide as all heads: over the row), a `window`, a `softcap`, a `scale` other than
    1/sqrt(head_dim), biases, `sinks` (a learned score a head, beside those of the keys), ALiBi's `slopes`.
    """

    def __init__(
        self,
        c: Arch,
        layer: int,
        *,
        rope: Rope | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        q_norm: Layer | None = None,
        k_norm: Layer | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        slopes: tuple[float, ...] | None = None,
    ) -> None:
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.qkv = Linear(c.hidden, (q_width, kv_width, kv_width), bias=qkv_bias)
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.out = Linear(q_width, c.hidden, bias=out_bias, axis=1)
        self.rope = rope
        self.sinks = Param((c.heads,), axis=0) if sinks else None
        self.spec = AttentionSpec(
            layer=layer,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5 if scale is None else scale,
            window=c.window(layer),
            softcap=softcap,
            slopes=slopes,
        )

    def __call__(self, op: Ops, x: Value) -> Value:
        """x [tokens, hidden] -> [tokens, hidden]."""
        q, k, v = self.qkv.split(op, x)
        q = self.q_norm(op, q) if self.q_norm else q
        k = self.k_norm(op, k) if self.k_norm else k
        if self.rope:
            table = op.rope_table(self.rope)
            q = op.rotate(q, table, self.spec.head_dim, self.rope.interleaved)
            k = op.rotate(k, table, self.spec.head_dim, self.rope.interleaved)
        return self.out(op, op.attention(q, k, v, self.spec, self.sinks))


def alibi_slopes(heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """ALiBi's slopes (Press et al. 2022): 2^(-largest i / n), i = 1 .. n, for a power of two n.

    For another number of heads those of the power below, then every second one of the power above.
    """

    def powers(n: int) -> list[float]:
        return [2.0 ** (-largest * i / n) for i in range(1, n + 1)]

    below: int = 1 << (heads.bit_length() - 1)
    return tuple((powers(below) + powers(2 * below)[::2])[:heads])
