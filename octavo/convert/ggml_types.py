"""Rows of float32 to a GGUF tensor type, and which type each tensor of a file gets.

`--outtype` names a mix as llama.cpp does: most matrices get one type, the output matrix (or an embedding that
is the output matrix too) more bits, and in the `_m` mixes some of the value and down matrices too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.convert import ggml_k, ggml_simple
from octavo.errors import ConfigError
from octavo.ops.layouts import f32_to_bf16
from octavo.weights.ggml import NAMED, GgmlType

_BLOCKS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.uint8]]] = {
    "Q8_0": ggml_simple.q8_0,
    "Q4_0": ggml_simple.q4_0,
    "Q4_1": ggml_simple.q4_1,
    "Q5_0": ggml_simple.q5_0,
    "Q5_1": ggml_simple.q5_1,
    "IQ4_NL": ggml_simple.iq4_nl,
    "MXFP4": ggml_simple.mxfp4,
    "IQ4_XS": ggml_k.iq4_xs,
    "Q2_K": ggml_k.q2_k,
    "Q3_K": ggml_k.q3_k,
    "Q4_K": ggml_k.q4_k,
    "Q5_K": ggml_k.q5_k,
    "Q6_K": ggml_k.q6_k,
}
"""Type -> float32 [n, block] to uint8 [n, block bytes]."""


Rule = tuple[tuple[str, str], ...]
"""(where, type): the first that is true of a layer gives the type; none: the mix's base."""


@dataclass(frozen=True)
class Mix:
    """What `--outtype` asks for."""

    base: str
    file_type: int
    """GGUF's general.file_type (llama.cpp's llama_ftype)."""
    output: str | None = None
    """The output matrix's type; None: the same."""
    value: Rule = ()
    """Of value matrices, alone or with query and key in one."""
    down: Rule = ()
    joined: Rule = ()
    """Of attention's output matrices."""
    experts: str | None = None
    """The type of experts' matrices; None: that of any other's."""


_K_M: Rule = (("more", "Q6_K"),)
_EIGHTH: Rule = (("eighth", "Q5_K"),)
_SHARED: Rule = (("shared", "Q5_K"),)
_Q5_OF_EIGHT = ("eight experts", "Q5_K")

MIXES: dict[str, Mix] = {
    "f32": Mix("F32", 0),
    "f16": Mix("F16", 1),
    "bf16": Mix("BF16", 32),
    "q8_0": Mix("Q8_0", 7),
    "q4_0": Mix("Q4_0", 2, "Q6_K"),
    "q4_1": Mix("Q4_1", 3, "Q6_K"),
    "q5_0": Mix("Q5_0", 8, "Q6_K"),
    "q5_1": Mix("Q5_1", 9, "Q6_K"),
    "q2_k": Mix(
        "Q2_K",
        10,
        "Q6_K",
        value=(("shared", "Q4_K"), ("all", "Q3_K")),
        down=(("all", "Q3_K"),),
        joined=(_Q5_OF_EIGHT, ("all", "Q3_K")),
    ),
    "q3_k_s": Mix("Q3_K", 11, "Q6_K", joined=(_Q5_OF_EIGHT,)),
    "q3_k_m": Mix(
        "Q3_K",
        12,
        "Q6_K",
        value=(("two", "Q5_K"), ("all", "Q4_K")),
        down=(("sixteenth", "Q5_K"), ("all", "Q4_K")),
        joined=(_Q5_OF_EIGHT, ("all", "Q4_K")),
    ),
    "q3_k_l": Mix(
        "Q3_K",
        13,
        "Q6_K",
        value=(("all", "Q5_K"),),
        down=(("all", "Q5_K"),),
        joined=(("no eight experts", "Q5_K"),),
    ),
    "iq4_nl": Mix("IQ4_NL", 25, "Q6_K", value=_SHARED, down=_EIGHTH, joined=(_Q5_OF_EIGHT,)),
    "iq4_xs": Mix("IQ4_XS", 30, "Q6_K", value=_SHARED, down=_EIGHTH, joined=(_Q5_OF_EIGHT,)),
    "q4_k_s": Mix(
        "Q4_K",
        14,
        "Q6_K",
        value=(("four", "Q5_K"),),
        down=_EIGHTH,
        joined=(_Q5_OF_EIGHT,),
    ),
    "q4_k_m": Mix("Q4_K", 15, "Q6_K", value=_K_M, down=_K_M, joined=(_Q5_OF_EIGHT,)),
    "q5_k_s": Mix("Q5_K", 16, "Q6_K"),
    "q5_k_m": Mix("Q5_K", 17, "Q6_K", value=_K_M, down=_K_M),
    "q6_k": Mix("Q6_K", 18),
    "mxfp4_moe": Mix("Q8_0", 38, experts="MXFP4"),
}
"""--outtype: the mixes."""


@dataclass(frozen=True)
class Traits:
    """What a mix's rules ask of a model."""

    layers: int
    tied: bool
    """The embedding is the output matrix."""
    shared: int = 1
    """Query heads to a key-value head."""
    experts: int = 0


_TABLES = ("position_embd", "token_types")
_SMALLER = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Where 256 does not divide a row: the type with blocks of 32 that llama.cpp takes instead."""


def mix_of(outtype: str) -> Mix:
    """The mix of a name; ConfigError lists them."""
    mix = MIXES.get(outtype.lower())
    if mix is None:
        raise ConfigError(f"--outtype: there is no {outtype!r}.", hint=f"There are: {', '.join(MIXES)}.")
    return mix


def tensor_type(mix: Mix, name: str, shape: tuple[int, ...], model: Traits) -> GgmlType:
    """The type of a tensor with GGUF's `name`; one row or a table of positions or types stays float32.

    llama.cpp's rules (llama-quant.cpp).
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.startswith(_TABLES):
        return NAMED["F32"]
    kind = mix.base
    layer, part = _layer_of(name)
    plain = mix.base in ("F32", "F16", "BF16")
    if part == "ffn_gate_inp":  # a router: small, and its errors decide much
        return NAMED["F32"]
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        kind = mix.output or kind
        if mix.output and shape[-1] % NAMED[mix.base].block:
            kind = "Q8_0"
    elif mix.experts and part.endswith("_exps"):
        kind = mix.experts
    elif part in ("attn_v", "attn_qkv", "attn_k") and model.experts == 8 and not plain:
        kind = "Q8_0"
    elif part in ("attn_v", "attn_qkv"):
        kind = _by_rule(mix.value, mix.base, layer, model)
    elif part in ("ffn_down", "ffn_down_exps"):
        kind = _by_rule(mix.down, mix.base, layer, model)
    elif part == "attn_output":
        kind = _by_rule(mix.joined, mix.base, layer, model)
    return _fitting(kind, shape[-1])


def _layer_of(name: str) -> tuple[int, str]:
    words = name.split(".")
    return (int(words[1]), words[2]) if words[0] == "blk" else (-1, words[0])


def _by_rule(rule: Rule, base: str, layer: int, model: Traits) -> str:
    eighth = model.layers // 8
    true = {
        "all": True,
        "two": layer < 2,
        "four": layer < 4,
        "sixteenth": layer < model.layers // 16,
        "eighth": layer < eighth,
        # The first and the last eighth of the layers, and every third between.
        "more": layer < eighth or layer >= 7 * model.layers // 8 or (layer - eighth) % 3 == 2,
        "shared": model.shared >= 4,
        "eight experts": model.experts == 8,
        "no eight experts": model.experts != 8,
    }
    return next((kind for where, kind in rule if true[where]), base)


def _fitting(kind: str, cols: int) -> GgmlType:
    if cols % NAMED[kind].block and kind in _SMALLER:
        kind = _SMALLER[kind]
    return NAMED["F16"] if cols % NAMED[kind].block else NAMED[kind]


def encode(values: NDArray[np.float32], kind: GgmlType) -> NDArray[np.uint8]:
    """float32 [rows, cols] -> uint8 [rows, row bytes]."""
    rows = np.ascontiguousarray(values, dtype=np.float32)
    if kind.name in _BLOCKS:
        return _BLOCKS[kind.name](rows.reshape(-1, kind.block)).reshape(len(rows), -1)
    if kind.name == "BF16":
        return f32_to_bf16(rows).view(np.uint8).reshape(len(rows), -1)
    if kind.name == "F16":
        return ggml_simple.half_bytes(rows).reshape(len(rows), -1)
    return rows.view(np.uint8).reshape(len(rows), -1)
