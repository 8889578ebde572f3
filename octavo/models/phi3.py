"""Phi-3, Phi-3.5 and Phi-4 (dense). Abdin et al. 2024."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family

PHI3 = LLAMA.but(
    {
        "blocks.{i}.attention.qkv": "model.layers.{i}.self_attn.qkv_proj",
        "blocks.{i}.mlp.gate_up": "model.layers.{i}.mlp.gate_up_proj",
    }
)


@family("Phi3ForCausalLM", names=PHI3, gguf="phi3")
def phi3(c: Arch) -> Decoder:
    """Mistral's layers, stored as we keep them: query, key and value in one tensor, gate and up in one."""
    return llama_like(c, lambda i: Attention(c, i, rope=rope(c, i)))
