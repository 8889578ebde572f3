"""The whole model: token ids in, logits of the wanted rows out."""

from __future__ import annotations

from collections.abc import Callable

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.base import Layer
from octavo.layers.linear import Embedding, Linear, TiedHead
from octavo.layers.pooling import Head
from octavo.ops.contract import AttentionSpec, Ops, Value


class Decoder(Layer):
    """Embedding, blocks, a last norm and the output matrix.

    `positions`: learned positions added to the embedding (GPT-2). `embed_scale`: factor on the embedding's
    rows; `logit_scale`: factor on the logits; `logit_softcap`: cap * tanh(logits / cap) (Gemma).
    :meth:`pooled` puts a head of another kind in place of the output matrix.
    """

    pooling: Head | None = None
    spelling: int = 0
    """Which of the family's names the checkpoint uses; the load pass looks."""

    def __init__(
        self,
        c: Arch,
        block: Callable[[int], Layer],
        *,
        norm: Layer,
        positions: Embedding | None = None,
        embed_scale: float | None = None,
        embed_scale_in_dtype: bool = False,
        logit_scale: float | None = None,
        logit_softcap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        self.arch = c
        self.embed = Embedding(c.vocab, c.hidden)
        self.positions = positions
        self.blocks = tuple(block(i) for i in range(c.layers))
        self.norm = norm
        self.head: Linear | TiedHead | None = (
            TiedHead(self.embed) if c.tied else Linear(c.hidden, c.vocab, bias=head_bias)
        )
        self.embed_scale = embed_scale
        self.embed_scale_in_dtype = embed_scale_in_dtype
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap

    def __call__(self, op: Ops, x: Value = None) -> Value:
        """Logits [len(logit_rows), vocab] of the step that `op` carries, or what the pooling head makes of
        its rows; `x` is not used."""
        rows = op.inputs().logit_rows
        if self.pooling is not None or self.head is None:
            # Means are of normalised rows.
            pooled = op.take(self.norm(op, self.hidden(op)), rows)
            return self.pooling(op, pooled) if self.pooling else pooled
        # Only the wanted rows go through the last norm and the largest matrix.
        logits = self.head(op, self.norm(op, op.take(self.hidden(op), rows)))
        if self.logit_scale is not None:
            logits = op.scale(logits, self.logit_scale)
        return logits if self.logit_softcap is None else op.softcap(logits, self.logit_softcap)

    def hidden(self, op: Ops) -> Value:
        """What leaves the last block [tokens, hidden]."""
        step = op.inputs()
        x = self.embed(op, step.token_ids)
        if self.embed_scale is not None:
            x = op.scale(x, self.embed_scale)
        if self.positions is not None:
            x = op.add(x, self.positions(op, step.positions))
        for block in self.blocks:
            x = block(op, x)
        return x

    def pooled(self, head: Head) -> None:
        """From now on a model of vectors: `head` in place of the output matrix."""
        self.embed.weight.kind = "table"
        self.head, self.pooling = None, head

    def classifier(self, labels: int, of_tokens: bool) -> Head:
        """The head of a classifier with so many labels, of sequences or `of_tokens`."""
        return Head(score=Linear(self.arch.hidden, labels, axis=None))

    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        """What each attention layer keeps, in the order of the cache's layers."""
        found = [layer.spec for _, layer in self.walk() if isinstance(layer, Attention)]
        return tuple(sorted(found, key=lambda spec: spec.layer))
