"""The mixtures of experts of Qwen1.5, Qwen2 and Qwen3. Qwen Team 2024; Yang et al. 2025."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.base import Layer
from octavo.layers.decoder import Decoder
from octavo.layers.experts import Experts, SharedExpert
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA, QWEN_EXPERTS
from octavo.models.registry import family
from octavo.ops.contract import ExpertsSpec

QWEN_MOE = LLAMA.but(
    {
        "blocks.{i}.mlp.router": "model.layers.{i}.mlp.gate",
        "blocks.{i}.mlp.shared.scores": "model.layers.{i}.mlp.shared_expert_gate",
        "blocks.{i}.mlp.shared.expert.gate_up": "model.layers.{i}.mlp.shared_expert.{gate,up}_proj",
        "blocks.{i}.mlp.shared.expert.down": "model.layers.{i}.mlp.shared_expert.down_proj",
    },
    experts=QWEN_EXPERTS,
)


def _mlp(c: Arch, i: int, *, shared: bool) -> Layer:
    """Experts in every `decoder_sparse_step`-th layer, but those of `mlp_only_layers`."""
    step = c.integer("decoder_sparse_step", least=0)
    if i in c.integers("mlp_only_layers") or step == 0 or (i + 1) % step:
        return GatedMLP(c.hidden, c.ffn, c.act)
    spec = ExpertsSpec(*c.experts(), renormalise=c.flag("norm_topk_prob"), activation=c.act)
    ffn = c.integer("moe_intermediate_size")
    always = SharedExpert(c.hidden, c.integer("shared_expert_intermediate_size"), c.act) if shared else None
    return Experts(c.hidden, ffn, spec, shared=always)


@family("Qwen2MoeForCausalLM", names=QWEN_MOE, gguf="qwen2moe")
def qwen2_moe(c: Arch) -> Decoder:
    """Qwen2 with experts, and one more that every token goes to."""
    bias = c.flag("qkv_bias")
    return llama_like(
        c, lambda i: Attention(c, i, rope=rope(c, i), qkv_bias=bias), mlp=partial(_mlp, c, shared=True)
    )


@family("Qwen3MoeForCausalLM", names=QWEN_MOE, gguf="qwen3moe")
def qwen3_moe(c: Arch) -> Decoder:
    """Qwen3 with experts."""
    bias = c.flag("attention_bias")
    norm = partial(RMSNorm, c.head_dim, c.eps)

    def attention(i: int) -> Attention:
        return Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias, q_norm=norm(), k_norm=norm())

    return llama_like(c, attention, mlp=partial(_mlp, c, shared=False))
