"""Mistral 7B and what followed in its shape. Jiang et al. 2023."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("MistralForCausalLM", names=LLAMA, gguf="llama")
def mistral(c: Arch) -> Decoder:
    """Llama with a window on every layer, when config.json gives one."""
    return llama_like(c, lambda i: Attention(c, i, rope=rope(c, i)))
