"""From the words after ``octavo bench SUBCOMMAND`` to settings: the shared flags and its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.config.flag_rules import Settings
from octavo.config.flag_table import Flag
from octavo.config.flags import Given, Table, parse, read_config_file, resolve
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Asked:
    """A command line, read."""

    own: dict[str, Any]
    """The subcommand's own flags, by the name in their target; only those that were given."""
    settings: Settings
    """Everything else: engine and server."""
    server_words: tuple[str, ...]
    """The shared flags as words for ``octavo serve``, the model first when one was named."""

    @property
    def model(self) -> str | None:
        """The model that was named."""
        name: str | None = self.settings.engine.get("model")
        return name

    @property
    def seed(self) -> int:
        """--seed, of the data and of the engine."""
        return int(self.settings.engine.get("seed", 0))


def read_words(words: Sequence[str], flags: Sequence[Flag], kept: Sequence[Flag] | None = None) -> Asked:
    """Read a subcommand's words; one positional is the model. Raises ConfigError for what cannot be read.

    `kept`: those of `flags` that are the subcommand's own (None: all); the others are handed on as words.
    """
    table = Table(flags)
    parsed = parse(words, table)
    given: list[Given] = []
    for item in parsed.given:
        if item.flag.target == "cli.config":
            given.extend(read_config_file(os.path.expanduser(str(item.value)), table))
    settings = resolve([*given, *parsed.given])
    _name_model(settings, parsed.positionals)
    targets = {flag.target for flag in (flags if kept is None else kept)}
    own = {name: value for name, value in settings.cli.items() if f"cli.{name}" in targets}
    forwarded = [word for item in parsed.given if item.flag.target not in targets for word in _words(item)]
    if "dummy" in own:
        _use_dummy(settings, forwarded, str(own["dummy"]))
    return Asked(own, settings, (*parsed.positionals[:1], *forwarded))


def _name_model(settings: Settings, positionals: Sequence[str]) -> None:
    if len(positionals) > 1:
        raise ConfigError(f"Unexpected word {positionals[1]!r} after the model.", hint="Flags begin with --.")
    if not positionals:
        return
    named = settings.engine.get("model")
    if named is not None and named != positionals[0]:
        raise ConfigError(f"Two models named: {positionals[0]} and {named}.", hint="Give one.")
    settings.engine["model"] = positionals[0]


def _use_dummy(settings: Settings, forwarded: list[str], name: str) -> None:
    from octavo.bench.shapes import dummy_folder

    if settings.engine.get("model") is not None:
        raise ConfigError(
            "--dummy names a model of random weights, and a model is named too.", hint="Give one."
        )
    folder = dummy_folder(name)
    settings.engine["model"] = str(folder)
    settings.engine["load_format"] = "dummy"
    forwarded += ["--model", str(folder), "--load-format", "dummy", "--served-model-name", name]


def _words(item: Given) -> list[str]:
    """A flag as words again."""
    if item.flag.kind == "bool":
        return [f"--{item.flag.name}={str(item.value).lower()}"]
    name = ".".join([item.spelling, *item.path])
    if isinstance(item.value, list):
        return [name, *map(str, item.value)]
    value = item.value if isinstance(item.value, str) else json.dumps(item.value)
    return [name, value]


def engine_config(asked: Asked, defaults: Mapping[str, Any]) -> EngineConfig:
    """The engine's configuration: what was given, then `defaults`, then Octavo's own.

    A folder with nothing but config.json (``--load-format dummy``) needs no tokenizer.
    """
    from octavo import log
    from octavo.config import start

    log.setup(os.environ.get("OCTAVO_LOGGING_LEVEL", "WARNING"))
    for name, value in defaults.items():
        asked.settings.engine.setdefault(name, value)
    model = asked.model
    if model is not None and asked.settings.engine.get("load_format") == "dummy":
        folder = Path(os.path.expanduser(model))
        if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
            asked.settings.engine.setdefault("skip_tokenizer_init", True)
    return start.engine_config(asked.settings)


def at_least(name: str, value: int | float, least: int | float) -> None:
    """Raise ConfigError when a number is too small to mean anything."""
    if value < least:
        raise ConfigError(f"{name} is {value}; give at least {least}.", param=name)
