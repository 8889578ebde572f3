"""gpt-oss. OpenAI 2025."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.experts import Experts
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA
from octavo.models.registry import family
from octavo.ops.contract import ExpertsSpec

_STACK = "model.layers.{i}.mlp.experts"
GPT_OSS = LLAMA.but(
    {
        "blocks.{i}.attention": "model.layers.{i}.self_attn",
        "blocks.{i}.mlp.router": "model.layers.{i}.mlp.router",
    },
    experts={
        "blocks.{i}.mlp.gate": (f"{_STACK}.{{e}}.gate_proj", f"{_STACK}.gate_up_proj:even"),
        "blocks.{i}.mlp.up": (f"{_STACK}.{{e}}.up_proj", f"{_STACK}.gate_up_proj:odd"),
        "blocks.{i}.mlp.down": (f"{_STACK}.{{e}}.down_proj", f"{_STACK}.down_proj:all"),
    },
    transposed=("gate", "up", "down"),
)
"""Stacks of plain numbers are stored [experts, in, out]."""

_ALPHA = 1.702
"""What quick_gelu multiplies by."""


@family("GptOssForCausalLM", names=GPT_OSS, gguf="gpt-oss")
def gpt_oss(c: Arch) -> Decoder:
    """Every other layer looks through a window; sinks; experts with biases, their activation limited."""
    if c.number("swiglu_alpha") != _ALPHA:
        raise UnsupportedModel(f"config.json: swiglu_alpha must be {_ALPHA}.")
    spec = ExpertsSpec(
        *c.experts(), scoring="chosen", activation="quick_gelu", limit=c.number("swiglu_limit")
    )
    bias = c.flag("attention_bias")
    return llama_like(
        c,
        lambda i: Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias, sinks=True),
        mlp=lambda i: Experts(c.hidden, c.ffn, spec, bias=True, router_bias=True),
    )
