"""StableLM 2 and StableLM 3B. Bellagente et al. 2024."""

from __future__ import annotations

from functools import partial

from octavo.config.arch import Arch
from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.block import Parallel, PreNorm
from octavo.layers.decoder import Decoder
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import LayerNorm
from octavo.layers.rope import rope
from octavo.models.names import LLAMA
from octavo.models.registry import family


@family("StableLmForCausalLM", names=LLAMA, gguf="stablelm")
def stablelm(c: Arch) -> Decoder:
    """Llama with LayerNorm and a quarter of each head rotated, its halves in turn or side by side."""
    if c.flag("qk_layernorm"):
        raise UnsupportedModel(
            "config.json: StableLM's qk_layernorm (a norm of its own per head) is not supported."
        )
    norm = partial(LayerNorm, c.hidden, c.eps)
    join = Parallel if c.flag("use_parallel_residual") else PreNorm

    def block(i: int) -> Parallel | PreNorm:
        attention = Attention(c, i, rope=rope(c, i), qkv_bias=c.flag("use_qkv_bias"))
        return join(attention, GatedMLP(c.hidden, c.ffn, c.act), norm)

    return Decoder(c, block, norm=norm())
