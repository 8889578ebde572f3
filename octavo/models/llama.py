"""Llama 2, 3, 3.1 and later. Touvron et al. 2023; Grattafiori et al. 2024."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from octavo.config.arch import Arch
from octavo.layers.attention import Attention
from octavo.layers.base import Layer
from octavo.layers.block import PreNorm
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family


def llama_like(
    c: Arch,
    attention: Callable[[int], Layer],
    *,
    mlp_bias: bool = False,
    mlp: Callable[[int], Layer] | None = None,
) -> Decoder:
    """The decoder that Llama made common: RMSNorm before each half, any attention, a gated feed-forward or
    what `mlp` makes for a layer.
    """
    norm = partial(RMSNorm, c.hidden, c.eps)

    def block(i: int) -> PreNorm:
        return PreNorm(attention(i), mlp(i) if mlp else GatedMLP(c.hidden, c.ffn, c.act, bias=mlp_bias), norm)

    return Decoder(c, block, norm=norm())


@family("LlamaForCausalLM", names=LLAMA, gguf="llama")
def llama(c: Arch) -> Decoder:
    """Biases on attention and feed-forward only when config.json asks for them."""
    bias = c.flag("attention_bias")
    return llama_like(
        c,
        lambda i: Attention(c, i, rope=rope(c, i), qkv_bias=bias, out_bias=bias),
        mlp_bias=c.flag("mlp_bias"),
    )
