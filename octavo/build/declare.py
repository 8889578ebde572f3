"""Pass 1, declare: the family function assembles layers with full logical shapes, and every Param gets its
name.
"""

from __future__ import annotations

from octavo.config.arch import Arch
from octavo.layers.decoder import Decoder
from octavo.models import registry


def declare(arch: Arch) -> Decoder:
    """The model of an architecture, not one number loaded. A Param's name is its path; a tied one keeps its
    first.

    Raises UnsupportedModel for an architecture without a family, CheckpointError for rope parameters that
    make none.
    """
    model = registry.lookup(arch.architecture).declare(arch)
    for path, param in model.named_params():
        param.name = path
    return model
