"""Granite 3, dense. IBM 2024."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import PreNorm
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("GraniteForCausalLM", names=LLAMA, gguf="granite")
def granite(c: Arch) -> Decoder:
    """Llama with a factor on embeddings, attention scores, residual parts and logits."""
    norm = partial(RMSNorm, c.hidden, c.eps)
    bias = c.flag("attention_bias")
    scale = c.number("attention_multiplier")

    def block(i: int) -> PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias, scale=scale)
        mlp = GatedMLP(c.hidden, c.ffn, c.act, bias=c.flag("mlp_bias"))
        return PreNorm(attention, mlp, norm, scale=c.number("residual_multiplier"))

    return Decoder(
        c,
        block,
        norm=norm(),
        embed_scale=c.number("embedding_multiplier"),
        logit_scale=1 / c.number("logits_scaling"),
    )
