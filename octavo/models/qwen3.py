"""Qwen3, dense. Yang et al. 2025."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("Qwen3ForCausalLM", names=LLAMA, gguf="qwen3")
def qwen3(c: Arch) -> Decoder:
    """Llama with a norm on each head of query and key."""
    bias = c.flag("attention_bias")
    norm = partial(RMSNorm, c.head_dim, c.eps)

    def attention(i: int) -> Attention:
        return Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias, q_norm=norm(), k_norm=norm())

    return llama_like(c, attention)
