"""Qwen1.5, Qwen2 and Qwen2.5. Yang et al. 2024."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("Qwen2ForCausalLM", names=LLAMA, gguf="qwen2")
def qwen2(c: Arch) -> Decoder:
    """Llama with biases on query, key and value."""
    return llama_like(c, lambda i: Attention(c, i, rope=rope(c, i), qkv_bias=True))
