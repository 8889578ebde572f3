"""OLMo 2. OLMo et al. 2024."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import PostNorm
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family

OLMO2 = LLAMA.but(
    {
        "blocks.{i}.attention_post_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)


@family("Olmo2ForCausalLM", names=OLMO2, gguf="olmo2")
def olmo2(c: Arch) -> Decoder:
    """Norms after each half; query and key normalised over all heads together."""
    norm = partial(RMSNorm, c.hidden, c.eps)
    bias = c.flag("attention_bias")

    def block(i: int) -> PostNorm:
        attention = Attention(
            c,
            i,
            rope=rope(c, i),
            qkv_bias=bias,
            out_bias=bias,
            q_norm=RMSNorm(c.heads * c.head_dim, c.eps),
            k_norm=RMSNorm(c.kv_heads * c.head_dim, c.eps),
        )
        return PostNorm(attention, GatedMLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm())
