"""Names that stand in one module and belong to another, found there when they are first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from octavo.collector import paused


def later(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for `module`: name to the module that has it."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        with paused():
            return getattr(importlib.import_module(homes[name]), name)

    return find
