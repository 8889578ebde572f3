"""What the subcommands share: help, and from words and the config file to settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from octavo.cli.usage import usage_errors
from octavo.config.flag_rules import Settings
from octavo.config.flag_table import Flag
from octavo.config.flags import Given, Table, parse, read_config_file, resolve
from octavo.errors import ConfigError


def wants_help(command: str, words: Sequence[str]) -> str | None:
    """The help page that `words` ask for, or None."""
    from octavo.cli.help import command_help
    from octavo.cli.main import COMMANDS

    for at, word in enumerate(words):
        head, _, topic = word.partition("=")
        if head in ("--help", "-h"):
            following = words[at + 1] if at + 1 < len(words) and not topic else ""
            asked = topic or ("" if following.startswith("-") else following)
            with usage_errors():
                return command_help(command, asked, COMMANDS[command][1])
        if word == "--":
            break
    return None


def read_words(words: Sequence[str], extra: Iterable[Flag] = (), *, positionals: int = 1) -> Settings:
    """Settings of a command line: config file first, then the words.

    The first positional is the model, a second (where `positionals` allows it) stands in `cli["text"]`.
    Raises UsageError for what cannot be read and for more positionals than that.
    """
    with usage_errors():
        return _read(words, Table(extra), positionals)


def _read(words: Sequence[str], table: Table, positionals: int) -> Settings:
    parsed = parse(words, table)
    given: list[Given] = []
    for item in parsed.given:
        if item.flag.target == "cli.config":
            given.extend(read_config_file(os.path.expanduser(str(item.value)), table))
    settings = resolve([*given, *parsed.given])
    if len(parsed.positionals) > positionals:
        surplus = parsed.positionals[positionals]
        raise ConfigError(
            f"Unexpected word {surplus!r} after the model.",
            hint="Flags begin with --; a text of several words wants quotation marks."
            if positionals > 1
            else "Flags begin with --.",
        )
    if parsed.positionals:
        named = settings.engine.get("model")
        if named is not None and named != parsed.positionals[0] and _on_line(parsed.given):
            raise ConfigError(f"Two models named: {parsed.positionals[0]} and {named}.", hint="Give one.")
        settings.engine["model"] = parsed.positionals[0]
    if len(parsed.positionals) > 1:
        settings.cli["text"] = parsed.positionals[1]
    return settings


def _on_line(given: Iterable[Given]) -> bool:
    return any(item.flag.target == "engine.model" for item in given)
