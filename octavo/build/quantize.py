"""Pass 2, quantize: the checkpoint's format marks each Linear with the weight layout that it is stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.layers.decoder import Decoder
from octavo.quant.online import GROUPS, Rounding, method_of

Mark = Callable[[Decoder, dict[str, Any]], Decoder]

FORMATS: dict[str, Mark] = {}
"""`quant_method` of config.json -> what marks a model's matrices for it. A format is one file that adds
itself.
"""


def quantize(model: Decoder) -> Decoder:
    """The model with its matrices marked; a checkpoint without quantization_config passes as it is.

    Raises UnsupportedModel, naming the method and those that there are.
    """
    config = model.arch.quantization
    if not config:
        return model
    method = str(config.get("quant_method") or "unnamed")
    if method not in FORMATS:
        known = ", ".join(sorted(FORMATS)) or "none yet"
        raise UnsupportedModel(
            f"The checkpoint is quantized with {method!r}, which is not supported (supported: {known}).",
            hint="Use an unquantized checkpoint of the same model.",
        )
    return FORMATS[method](model, config)


def roundings(model: Decoder, method: str | None) -> Mapping[str, Rounding]:
    """--quantization: the matrices of a declared model by name, with how each is rounded while it is loaded.

    int8 rounds every matrix to 8 bits; int4 rounds to 4 bits, but the embedding and the output matrix, whose
    errors no later layer evens out, to 8. A checkpoint that is quantized stays as it is. ConfigError for
    another method.
    """
    if method is None or model.arch.quantization:
        return {}
    method = method_of(method)
    careful = {id(model.embed.weight), id(model.head.weight)}
    found = {}
    for name, param in model.named_params():
        if param.kind == "matrix" or id(param) in careful:
            bits = 8 if method == "int8" or id(param) in careful else 4
            found[name] = Rounding(bits, GROUPS[bits])
    return found
