"""GPT-2. Radford et al. 2019."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import PreNorm
from octavo.layers.decoder import Decoder
from octavo.layers.linear import Embedding
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm
from octavo.models.names import Names
from octavo.models.registry import family

GPT2 = Names(
    {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
        "blocks.{i}.attention.qkv": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.attention.out": "transformer.h.{i}.attn.c_proj",
        "blocks.{i}.mlp_norm": "transformer.h.{i}.ln_2",
        "blocks.{i}.mlp.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.mlp.down": "transformer.h.{i}.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    roots=("transformer.", ""),
    transposed=("qkv", "out", "up", "down"),
    unused=(r"\.attn\.(masked_)?bias$",),
)


@family("GPT2LMHeadModel", names=GPT2, gguf="gpt2")
def gpt2(c: Arch) -> Decoder:
    """Learned positions, LayerNorm, a plain MLP, biases everywhere; weights stored [in, out]."""
    norm = partial(LayerNorm, c.hidden, c.eps)
    by_depth = c.flag("scale_attn_by_inverse_layer_idx")

    def block(i: int) -> PreNorm:
        scale = (c.head_dim**-0.5 if c.flag("scale_attn_weights") else 1.0) / (i + 1 if by_depth else 1)
        attention = Attention(c, i, qkv_bias=True, out_bias=True, scale=scale)
        return PreNorm(attention, MLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm(), positions=Embedding(c.max_positions, c.hidden, axis=None))
