"""A tiny model for rounding at load."""

from __future__ import annotations

from typing import Any

from octavo.build.declare import declare
from octavo.config.arch import read_arch
from octavo.layers.decoder import Decoder
from octavo.ops.contract import Limits

TINY = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}
"""Widths that no block of 32 or group of 128 divides."""
LIMITS = Limits(tokens=256, sequences=8, logit_rows=256, block_size=16, max_model_len=256)


def tiny(**changes: Any) -> Decoder:
    return declare(read_arch({**TINY, **changes}), "bfloat16")
