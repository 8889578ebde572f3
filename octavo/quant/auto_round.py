"""AutoRound (Cheng et al. 2023) stores its codes as GPTQ, AWQ or compressed-tensors do, and says which in
`packing_format`.

`extra_config` holds other settings for modules by name; a module of 16 bits there is plain.
"""

from __future__ import annotations

import re
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.quant.awq import Awq
from octavo.quant.compressed import CompressedTensors
from octavo.quant.format import Format
from octavo.quant.gptq import BITS, Gptq


def auto_round(config: dict[str, Any]) -> Format:
    """The format behind an AutoRound config. UnsupportedModel for a packing that is neither."""
    packing = str(config.get("packing_format") or "auto_round:auto_gptq").rpartition(":")[2]
    if "awq" in packing:
        return Awq({**config, "version": "gemm"})
    extra = config.get("extra_config") or {}
    if not isinstance(extra, dict):
        raise UnsupportedModel("The quantization config's extra_config is no object of modules.")
    if packing in ("llm_compressor", "fp8_static"):
        modules = {name: changed for name, changed in extra.items() if isinstance(changed, dict)}
        groups = [_group(name, {**config, **changed}) for name, changed in modules.items()]
        return CompressedTensors({"config_groups": dict(enumerate([*groups, _group("Linear", config)]))})
    if packing != "auto_gptq" and not ("gptq" in packing and config.get("sym")):
        # How others store zero points is written nowhere; where they are known it does not matter.
        raise UnsupportedModel(f"AutoRound's packing_format {packing!r:.60} is not supported.")
    dynamic = {
        f"+:{re.escape(module)}$": changed
        for module, changed in extra.items()
        if isinstance(changed, dict) and changed.get("bits", config.get("bits")) in BITS
    }
    return Gptq({**config, "checkpoint_format": "gptq", "dynamic": dynamic})


def _group(target: str, said: dict[str, Any]) -> dict[str, Any]:
    """Settings of a module, or of all, as a group of compressed-tensors' config."""
    weights = {"num_bits": said.get("bits"), "group_size": said.get("group_size")}
    if said.get("bits") == 16:
        return {"targets": [target], "weights": None}
    rounded = said.get("act_bits") == 8 and said.get("act_data_type", "int") == "int"
    inputs = {"dynamic": said.get("act_dynamic", True), "symmetric": said.get("act_sym", True)}
    return {"targets": [target], "weights": weights, "input_activations": inputs if rounded else None}
