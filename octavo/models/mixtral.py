"""Mixtral. Jiang et al. 2024."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.experts import Experts
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA, QWEN_EXPERTS
from octavo.models.registry import family
from octavo.ops.contract import ExpertsSpec

_OLD = "model.layers.{i}.block_sparse_moe"
MIXTRAL = LLAMA.but(
    {"blocks.{i}.mlp.router": f"{_OLD}.gate|model.layers.{{i}}.mlp.gate"},
    experts={
        f"blocks.{{i}}.mlp.{ours}": (
            f"{_OLD}.experts.{{e}}.{old}",
            f"{_OLD}.experts.{{e}}.{ours}_proj",
            *QWEN_EXPERTS[f"blocks.{{i}}.mlp.{ours}"],
        )
        for ours, old in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    },
)


@family("MixtralForCausalLM", names=MIXTRAL, gguf="llama")
def mixtral(c: Arch) -> Decoder:
    """Mistral with experts, whose shares are a softmax over those chosen."""
    spec = ExpertsSpec(*c.experts(), scoring="chosen", activation=c.act)
    return llama_like(
        c, lambda i: Attention(c, i, rope=rope(c, i)), mlp=lambda i: Experts(c.hidden, c.ffn, spec)
    )
