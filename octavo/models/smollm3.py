"""SmolLM3. Hugging Face 2025."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("SmolLM3ForCausalLM", names=LLAMA, gguf="smollm3")
def smollm3(c: Arch) -> Decoder:
    """Llama with every fourth layer, or those that config.json lists, without rotary embedding."""
    bias = c.flag("attention_bias")

    def attention(i: int) -> Attention:
        turned = rope(c, i) if c.uses_rope(i) else None
        return Attention(c, i, rope=turned, qkv_bias=bias, out_bias=bias)

    return llama_like(c, attention, mlp_bias=c.flag("mlp_bias"))
