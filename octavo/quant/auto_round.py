"""AutoRound (Cheng et al. 2023) stores its codes as GPTQ or AWQ do, and says which in `packing_format`.

`extra_config` holds other settings for modules by name; a module of 16 bits there is plain.
"""

from __future__ import annotations

import re
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.quant.awq import Awq
from octavo.quant.format import Format
from octavo.quant.gptq import BITS, Gptq


def auto_round(config: dict[str, Any]) -> Format:
    """The format behind an AutoRound config. UnsupportedModel for a packing that is neither."""
    packing = str(config.get("packing_format") or "auto_round:auto_gptq").rpartition(":")[2]
    if "awq" in packing:
        return Awq({**config, "version": "gemm"})
    if packing != "auto_gptq" and not ("gptq" in packing and config.get("sym")):
        # How others store zero points is written nowhere; where they are known it does not matter.
        raise UnsupportedModel(f"AutoRound's packing_format {packing!r:.60} is not supported.")
    extra = config.get("extra_config") or {}
    if not isinstance(extra, dict):
        raise UnsupportedModel("The quantization config's extra_config is no object of modules.")
    dynamic = {
        f"+:{re.escape(module)}$": changed
        for module, changed in extra.items()
        if isinstance(changed, dict) and changed.get("bits", config.get("bits")) in BITS
    }
    return Gptq({**config, "checkpoint_format": "gptq", "dynamic": dynamic})
