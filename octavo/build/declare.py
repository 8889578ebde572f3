"""Pass 1, declare: the family function assembles layers with full logical shapes, and names every Param."""

from __future__ import annotations

import numpy as np

from octavo.config.arch import Arch
from octavo.layers.decoder import Decoder
from octavo.models import registry
from octavo.ops.layouts import bf16_to_f32, f32_to_bf16


def declare(arch: Arch, dtype: str = "float32") -> Decoder:
    """The model of an architecture, not one number loaded. A Param's name is its path; a tied one keeps its
    first.

    `dtype` is what the model runs in: Gemma's factor on the embeddings is a tensor of that dtype where it
    was trained, so that it is rounded to it. Raises UnsupportedModel for an architecture without a family,
    CheckpointError for rope parameters that make none.
    """
    model = registry.lookup(arch.architecture).declare(arch)
    for path, param in model.named_params():
        param.name = path
    if model.embed_scale is not None and model.embed_scale_in_dtype:
        model.embed_scale = _rounded(model.embed_scale, dtype)
    return model


def _rounded(value: float, dtype: str) -> float:
    exact = np.array([value], np.float32)
    if dtype == "bfloat16":
        return float(bf16_to_f32(f32_to_bf16(exact))[0])
    return float(exact.astype(np.float16 if dtype == "float16" else np.float32)[0])
