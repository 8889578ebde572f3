"""Pass 1, declare: the family function assembles layers with full logical shapes, and names every Param."""

from __future__ import annotations

import numpy as np

from octavo.config.arch import Arch
from octavo.config.pooling import Pooler
from octavo.errors import CheckpointError
from octavo.layers.decoder import Decoder
from octavo.layers.linear import Linear
from octavo.layers.pooling import Dense, Head
from octavo.models import registry
from octavo.ops.layouts import bf16_to_f32, f32_to_bf16


def declare(arch: Arch, dtype: str = "float32", pooler: Pooler | None = None) -> Decoder:
    """The model of an architecture, not one number loaded. A Param's name is its path; a tied one keeps its
    first.

    `dtype` is what the model runs in: Gemma's factor on the embeddings is a tensor of that dtype where it
    was trained, so that it is rounded to it. `pooler` makes it a model of vectors or labels.

    Raises UnsupportedModel for an architecture without a family, CheckpointError for rope parameters that
    make none and for pooling modules that do not fit.
    """
    model = registry.lookup(arch.architecture).declare(arch)
    if pooler is not None:
        model.pooled(_head(model, pooler))
    for path, param in model.named_params():
        param.name = path
    if model.embed_scale is not None and model.embed_scale_in_dtype:
        model.embed_scale = _rounded(model.embed_scale, dtype)
    return model


def _head(model: Decoder, pooler: Pooler) -> Head:
    if pooler.from_tokens:
        return Head(score=Linear(model.arch.hidden, len(pooler.labels), axis=None))
    if pooler.kind == "classify":
        return model.classifier(len(pooler.labels), pooler.of_tokens)
    widths = [model.arch.hidden, *(module.out for module in pooler.modules)]
    for width, module in zip(widths, pooler.modules, strict=False):
        if width != module.inner:
            raise CheckpointError(
                f"modules.json: {module.folder} reads {module.inner} numbers, but {width} stand before it."
            )
    return Head(modules=tuple(Dense(m.inner, m.out, m.act, bias=m.bias) for m in pooler.modules))


def _rounded(value: float, dtype: str) -> float:
    exact = np.array([value], np.float32)
    if dtype == "bfloat16":
        return float(bf16_to_f32(f32_to_bf16(exact))[0])
    return float(exact.astype(np.float16 if dtype == "float16" else np.float32)[0])
