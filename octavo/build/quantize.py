"""Pass 2, quantize: the format of a quantized checkpoint, and the matrices of a plain one to be rounded."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import msgspec

from octavo.config.arch import Arch
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.decoder import Decoder
from octavo.log import logger
from octavo.models import names
from octavo.quant.auto_round import auto_round
from octavo.quant.awq import Awq
from octavo.quant.bitsandbytes import BitsAndBytes
from octavo.quant.compressed import CompressedTensors
from octavo.quant.format import Format
from octavo.quant.fp8 import Fp8Checkpoint
from octavo.quant.gptq import Gptq
from octavo.quant.hqq import Hqq
from octavo.quant.modelopt import ModelOpt
from octavo.quant.mxfp4 import Mxfp4
from octavo.quant.online import GROUPS, NormalFloat, Rounding, method_of
from octavo.quant.torchao import TorchAo

log = logger(__name__)

FORMATS: dict[str, Callable[[dict[str, Any]], Format]] = {
    "gptq": Gptq,
    "auto-round": auto_round,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8Checkpoint,
    "fbgemm-fp8": Fp8Checkpoint,
    "hqq": Hqq,
    "modelopt": ModelOpt,
    "modelopt-fp4": ModelOpt,
    "mxfp4": Mxfp4,
    "torchao": TorchAo,
}
"""`quant_method` of the config -> the format it describes. A format is one file of octavo/quant."""

_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where quantizers wrote what config.json does not say."""
_HQQ = "qmodel.pt"
"""The weights that HQQ's own library wrote, beside a config.json that says nothing of it."""


def with_quantization(arch: Arch, folder: Path, read: Callable[[Path], dict[str, Any]]) -> Arch:
    """`arch` with the quantization config that stands beside config.json, where it has none of its own.

    `read` parses a JSON file, and gives {} for one that is not there.
    """
    if arch.quantization:
        return arch
    for name in _FILES:
        config = read(folder / name)
        if config and _method(config) in FORMATS:
            return msgspec.structs.replace(arch, quantization=config)
    if (folder / _HQQ).is_file():
        return msgspec.structs.replace(arch, quantization={"quant_method": "hqq"})
    return arch


def quantize(arch: Arch, asked: str | None = None) -> Format | None:
    """How the checkpoint's matrices are stored; None for a checkpoint that is not quantized.

    `asked` (--quantization) cannot change a checkpoint that is: one warning says so when it is another
    method. Raises UnsupportedModel, naming the method and those that there are.
    """
    config = arch.quantization
    if not config:
        return None
    method = _method(config)
    if asked and _spelled(asked) != method:
        log.warning("The checkpoint is quantized with %s: --quantization %s is not used.", method, asked)
    if method not in FORMATS:
        raise UnsupportedModel(
            f"The checkpoint is quantized with {method!r:.60}, which is not supported "
            f"(supported: {', '.join(sorted(FORMATS))}).",
            hint="Use an unquantized checkpoint of the same model.",
        )
    return FORMATS[method](config)


def own_head(model: Decoder, stored: Format | None, present: Container[str]) -> bool:
    """Whether a checkpoint whose config ties the output matrix to the embedding has a quantized one of its
    own beside it, as quantizers leave it that round the output matrix alone.
    """
    if stored is None or not model.arch.tied:
        return False
    stems = [name.removesuffix(".weight") for name in names.sources(model, model.embed.weight).names[0]]
    quantized = [stem for stem in stems if stored.suffixes(stem, present)]
    heads = [stem for stem in quantized if stem.endswith("lm_head")]
    return bool(heads) and any(
        stem in quantized or f"{stem}.weight" in present for stem in stems if not stem.endswith("lm_head")
    )


def _method(config: dict[str, Any]) -> str:
    """The format's name; the oldest files leave it out, and differ in their keys."""
    named = config.get("quant_method")
    if named is not None and not isinstance(named, str):
        raise CheckpointError(f"The quantization config has quant_method {named!r:.60}, expected a name.")
    if named:
        return _spelled(named)
    if "w_bit" in config or "q_group_size" in config:
        return "awq"
    inside = config.get("quantization")
    if "quant_algo" in (inside if isinstance(inside, dict) else config):
        return "modelopt"
    if "config_groups" in config:
        return "compressed-tensors"
    return "gptq" if "bits" in config else "unnamed"


def _spelled(name: str) -> str:
    """A method by its own name: others put that of their kernel behind it."""
    name = name.lower().replace("_", "-")
    for kernel in ("-marlin", "-exllama", "-exllamav2", "-ipex", "-rocm"):
        name = name.removesuffix(kernel)
    return name


def roundings(model: Decoder, method: str | None) -> Mapping[str, Rounding]:
    """--quantization: the matrices of a declared model by name, with how each is rounded while it is loaded.

    int8 rounds every matrix to 8 bits; int4 rounds to 4 bits, but the embedding and the output matrix, whose
    errors no later layer evens out, to 8. bitsandbytes rounds to NF4 what that library would: every matrix
    but these two. A checkpoint that is quantized stays as it is. ConfigError for another method.
    """
    if method is None or model.arch.quantization:
        return {}
    method = method_of(method)
    careful = {id(model.embed.weight)} | ({id(model.head.weight)} if model.head else set())
    found: dict[str, Rounding] = {}
    for name, param in model.named_params():
        if method == "bitsandbytes":
            if param.kind in ("matrix", "experts") and not param.exact and id(param) not in careful:
                found[name] = NormalFloat()
        elif (param.kind in ("matrix", "experts") and not param.exact) or id(param) in careful:
            bits = 8 if method == "int8" or id(param) in careful else 4
            found[name] = Rounding(bits, GROUPS[bits])
    return found
