"""The words of `--lora-modules`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from octavo.errors import ConfigError


def parse_modules(words: Iterable[str]) -> tuple[tuple[str, str, str | None], ...]:
    """(name, path, base model's name) of each `--lora-modules` word: `name=path`, or a JSON object with
    `name`, `path` and perhaps `base_model_name`. Raises ConfigError.
    """
    found: dict[str, tuple[str, str, str | None]] = {}
    for word in words:
        name, path, base = _module(word)
        if not name or not path or name in found:
            why = "is given twice" if name in found else "is no name=path"
            raise ConfigError(f"--lora-modules: {word[:200]!r} {why}.", param="--lora-modules")
        found[name] = (name, path, base)
    return tuple(found.values())


def _module(word: str) -> tuple[str, str, str | None]:
    if not word.lstrip().startswith("{"):
        name, _, path = word.partition("=")
        return name.strip(), path.strip(), None
    try:
        said = json.loads(word)
    except (ValueError, RecursionError):
        raise ConfigError(f"--lora-modules: {word[:200]!r} is not valid JSON.") from None
    base = said.get("base_model_name")
    return str(said.get("name") or ""), str(said.get("path") or ""), str(base) if base else None
