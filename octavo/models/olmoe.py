"""OLMoE. Muennighoff et al. 2024."""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.decoder import Decoder
from octavo.layers.experts import Experts
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.llama import llama_like
from octavo.models.names import LLAMA, QWEN_EXPERTS
from octavo.models.registry import family
from octavo.ops.contract import ExpertsSpec

OLMOE = LLAMA.but({"blocks.{i}.mlp.router": "model.layers.{i}.mlp.gate"}, experts=QWEN_EXPERTS)


@family("OlmoeForCausalLM", names=OLMOE, gguf="olmoe")
def olmoe(c: Arch) -> Decoder:
    """Llama with experts; query and key normalised over all heads together."""
    if c.optional("clip_qkv") is not None:
        raise UnsupportedModel("config.json: clip_qkv is not supported.")
    bias = c.flag("attention_bias")
    spec = ExpertsSpec(*c.experts(), renormalise=c.flag("norm_topk_prob"), activation=c.act)

    def attention(i: int) -> Attention:
        return Attention(
            c,
            i,
            rope=rope(c, i),
            qkv_bias=bias,
            out_bias=bias,
            q_norm=RMSNorm(c.heads * c.head_dim, c.eps),
            k_norm=RMSNorm(c.kv_heads * c.head_dim, c.eps),
        )

    return llama_like(c, attention, mlp=lambda i: Experts(c.hidden, c.ffn, spec))
