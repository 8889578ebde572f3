"""Pass 2, quantize: the checkpoint's format marks each Linear with the weight layout that it is stored in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.layers.decoder import Decoder

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
