"""StarCoder2. Lozhkov et al. 2024."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.block import PreNorm
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family

STARCODER2 = LLAMA.but(
    {
        "blocks.{i}.mlp.up": "model.layers.{i}.mlp.c_fc",
        "blocks.{i}.mlp.down": "model.layers.{i}.mlp.c_proj",
    }
)


@family("Starcoder2ForCausalLM", names=STARCODER2, gguf="starcoder2")
def starcoder2(c: Arch) -> Decoder:
    """LayerNorm and a plain MLP around grouped-query attention, with biases."""
    norm = partial(LayerNorm, c.hidden, c.eps)
    bias = c.flag("use_bias")

    def block(i: int) -> PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias)
        return PreNorm(attention, MLP(c.hidden, c.ffn, c.act, bias=bias), norm)

    return Decoder(c, block, norm=norm())
