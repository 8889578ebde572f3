"""Qwen1.5, Qwen2 and Qwen2.5. Yang et al. 2024."""

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


@family("Qwen2ForCausalLM", names=LLAMA, gguf="qwen2")
def qwen2(c: Arch) -> Decoder:
    """Llama with biases on query, key and value."""
    norm = partial(RMSNorm, c.hidden, c.eps)

    def block(i: int) -> PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=True)
        return PreNorm(attention, GatedMLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm())
