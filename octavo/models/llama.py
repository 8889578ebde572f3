"""Llama 2, 3, 3.1 and later. Touvron et al. 2023; Grattafiori et al. 2024."""

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


@family("LlamaForCausalLM", names=LLAMA, gguf="llama")
def llama(c: Arch) -> Decoder:
    """Biases on attention and feed-forward only when config.json asks for them."""
    norm = partial(RMSNorm, c.hidden, c.eps)
    bias = c.flag("attention_bias")

    def block(i: int) -> PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias)
        return PreNorm(attention, GatedMLP(c.hidden, c.ffn, c.act, bias=c.flag("mlp_bias")), norm)

    return Decoder(c, block, norm=norm())
