"""Phi-1, Phi-1.5 and Phi-2. Li et al. 2023."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import Parallel
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family

PHI = LLAMA.but(
    {
        "blocks.{i}.attention.out": "model.layers.{i}.self_attn.dense",
        "blocks.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_layernorm",
        "blocks.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_layernorm",
        "blocks.{i}.mlp.up": "model.layers.{i}.mlp.fc1",
        "blocks.{i}.mlp.down": "model.layers.{i}.mlp.fc2",
        "norm": "model.final_layernorm",
    }
)


@family("PhiForCausalLM", names=PHI, gguf="phi2")
def phi(c: Arch) -> Decoder:
    """Attention and a plain MLP side by side, half of each head rotated, biases everywhere."""
    norm = partial(LayerNorm, c.hidden, c.eps)
    head_norm = partial(LayerNorm, c.head_dim, c.eps)
    normed = c.flag("qk_layernorm")

    def block(i: int) -> Parallel:
        attention = Attention(
            c,
            i,
            rope=rope(c, i),
            qkv_bias=True,
            out_bias=True,
            q_norm=head_norm() if normed else None,
            k_norm=head_norm() if normed else None,
        )
        return Parallel(attention, MLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm(), head_bias=True)
