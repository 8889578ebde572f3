"""Which function declares which architecture. A family's file registers itself with :func:`family`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from octavo.config.arch import Arch
from octavo.errors import UnsupportedModel
from octavo.layers.decoder import Decoder

if TYPE_CHECKING:
    from octavo.models.names import Names

Declare = Callable[[Arch], Decoder]


@dataclass(frozen=True)
class Family:
    """One architecture: the function that declares it, its checkpoint's names, and what GGUF calls it."""

    architecture: str
    declare: Declare
    names: Names
    gguf: str | None
    others: tuple[Names, ...] = ()
    """Other ways in which checkpoints name the same tensors."""


_families: dict[str, Family] = {}


def family(
    *architectures: str, names: Names, gguf: str | None = None, others: tuple[Names, ...] = ()
) -> Callable[[Declare], Declare]:
    """Register the decorated function as the declaration of config.json's `architectures`."""

    def register(declare: Declare) -> Declare:
        for architecture in architectures:
            _families[architecture] = Family(architecture, declare, names, gguf, others)
        return declare

    return register


@cache
def _load_all() -> None:
    package = importlib.import_module("octavo.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"octavo.models.{module.name}")


def supported() -> tuple[str, ...]:
    """Every architecture that has a family, sorted."""
    _load_all()
    return tuple(sorted(_families))


def lookup(architecture: str) -> Family:
    """The family of an architecture; UnsupportedModel lists what there is."""
    _load_all()
    if architecture not in _families:
        raise UnsupportedModel(
            f"The architecture {architecture} is not supported.", hint=f"Supported: {', '.join(supported())}."
        )
    return _families[architecture]
