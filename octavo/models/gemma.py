"""Gemma, Gemma 2 and Gemma 3 (its text model). Gemma Team 2024, 2025."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import PreNorm, Sandwich
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family

GEMMA = LLAMA.but(
    {
        "blocks.{i}.attention_post_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
        "blocks.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)
WITH_VISION = GEMMA.but({}, unused=(r"vision_tower\.", r"multi_modal_projector\."))
"""Gemma 3's wrapper: its text model is served, its eyes stay shut."""


def _decoder(c: Arch, *, head_norms: bool, softcap: float | None) -> Decoder:
    """Norms around both halves, their weights stored less 1; scaled embeddings; its own attention scale."""
    norm = partial(RMSNorm, c.hidden, c.eps, offset=1.0)
    head_norm = partial(RMSNorm, c.head_dim, c.eps, offset=1.0)
    bias = c.flag("attention_bias")

    def block(i: int) -> Sandwich:
        attention = Attention(
            c,
            i,
            rope=rope(c, i),
            qkv_bias=bias,
            out_bias=bias,
            q_norm=head_norm() if head_norms else None,
            k_norm=head_norm() if head_norms else None,
            scale=c.number("query_pre_attn_scalar") ** -0.5,
            softcap=softcap,
        )
        return Sandwich(attention, GatedMLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(
        c,
        block,
        norm=norm(),
        embed_scale=c.hidden**0.5,
        embed_scale_in_dtype=True,
        logit_softcap=c.optional("final_logit_softcapping"),
    )


@family("GemmaForCausalLM", names=LLAMA, gguf="gemma")
def gemma(c: Arch) -> Decoder:
    """Llama with scaled embeddings and norm weights stored less 1."""
    norm = partial(RMSNorm, c.hidden, c.eps, offset=1.0)
    bias = c.flag("attention_bias")
    # The first releases say gelu and mean its tanh approximation.
    act = "gelu_tanh" if c.act == "gelu" else c.act

    def block(i: int) -> PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias)
        return PreNorm(attention, GatedMLP(c.hidden, c.ffn, act), norm)

    return Decoder(c, block, norm=norm(), embed_scale=c.hidden**0.5, embed_scale_in_dtype=True)


@family("Gemma2ForCausalLM", names=GEMMA, gguf="gemma2")
def gemma2(c: Arch) -> Decoder:
    """Every other layer looks through a window; attention scores are capped."""
    return _decoder(c, head_norms=False, softcap=c.optional("attn_logit_softcapping"))


@family("Gemma3ForCausalLM", names=GEMMA, gguf="gemma3")
@family("Gemma3ForConditionalGeneration", names=WITH_VISION, gguf="gemma3")
def gemma3(c: Arch) -> Decoder:
    """Five local layers to a global one, each kind with its own rope base; norms on query and key."""
    return _decoder(c, head_norms=True, softcap=None)
