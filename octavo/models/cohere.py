"""Command R. Cohere 2024."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.block import Parallel
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import LayerNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("CohereForCausalLM", names=LLAMA, gguf="command-r")
def cohere(c: Arch) -> Decoder:
    """Halves side by side under one LayerNorm without bias; neighbours rotated in pairs; scaled logits."""
    if c.flag("use_qk_norm"):
        raise UnsupportedModel(
            "config.json: Cohere's use_qk_norm (a norm of its own per head) is not supported."
        )
    norm = partial(LayerNorm, c.hidden, c.eps, bias=False)
    bias = c.flag("attention_bias")

    def block(i: int) -> Parallel:
        attention = Attention(c, i, rope=rope(c, i, interleaved=True), qkv_bias=bias, out_bias=bias)
        return Parallel(attention, GatedMLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm(), logit_scale=c.number("logit_scale"))
