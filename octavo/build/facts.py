"""A model's outline in the numbers that a person asks for."""

from __future__ import annotations

import math

from octavo.build.outline import Outline
from octavo.types.facts import ModelFacts
from octavo.weights.dummy import DummyWeights
from octavo.weights.gguf import GgufCheckpoint

GGUF_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    38: "MXFP4_MOE",
}
"""GGUF's general.file_type: what most of the tensors are."""
_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def facts(known: Outline, rounded: str | None = None) -> ModelFacts:
    """`rounded`: what --quantization rounds the weights to on loading, where it does."""
    arch, checkpoint = known.arch, known.checkpoint
    return ModelFacts(
        architecture=arch.architecture,
        family=str(arch.config.get("model_type") or arch.architecture.partition("For")[0].lower())[:60],
        storage=_storage(known),
        quantization=_quantization(known, rounded if known.roundings else None),
        parameters=sum(math.prod(param.shape) for _, param in known.decoder.named_params()),
        weight_bytes=known.weight_bytes if isinstance(checkpoint, DummyWeights) else checkpoint.nbytes,
        context=arch.max_positions,
        layers=arch.layers,
        hidden=arch.hidden,
        ffn=arch.ffn,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        vocab=arch.vocab,
    )


def _storage(known: Outline) -> str:
    checkpoint = known.checkpoint
    if isinstance(checkpoint, GgufCheckpoint):
        return "gguf"
    if isinstance(checkpoint, DummyWeights):
        return "dummy"
    name = next(iter(checkpoint.names()), None)
    return "safetensors" if name is None or checkpoint.file_of(name).suffix == ".safetensors" else "pytorch"


def _quantization(known: Outline, rounded: str | None) -> str:
    """As short as Ollama's quantization_level."""
    if rounded:
        return rounded
    if known.stored is not None:
        return known.stored.method
    if isinstance(known.checkpoint, GgufCheckpoint):
        kind = known.checkpoint.metadata.get("general.file_type")
        return GGUF_FILE_TYPES.get(kind, "") if isinstance(kind, int) else ""
    return _SHORT.get(known.arch.dtype or known.dtype, "")
