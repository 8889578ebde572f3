"""``octavo bench SUBCOMMAND``: finds the subcommand, its flags and its help; loads it only then."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import textwrap
from typing import Any

from octavo.bench import flags
from octavo.bench.options import Asked, read_words
from octavo.config.flag_table import Flag
from octavo.config.flag_values import METAVAR
from octavo.config.flags import nearest
from octavo.errors import ConfigError

OK, FAILED, USAGE = 0, 1, 2
_COLUMN = 34

COMMANDS: dict[str, str] = {
    "latency": "One batch of equal requests: latency, prefill, decode.",
    "throughput": "Many requests at once: tokens per second.",
    "serve": "Requests over HTTP: time to first token, between tokens.",
    "sweep": "One of the three above over every combination of some flags' values.",
    "startup": "A fresh process until its first token.",
    "quality": "Perplexity on a text file.",
    "kernels": "Each kernel alone, beside the limits of the machine.",
}
"""Subcommand to its line of help. Its module has ``run(asked) -> result`` and ``text(result)``."""


def main(argv: list[str]) -> int:
    """Run ``octavo bench ARGV``; the exit code: 0, 1 when no request of a run went well, 2 for a command
    line that cannot be read.

    Raises OctavoError for what fails later.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return OK
    name, words = argv[0], argv[1:]
    try:
        if name not in COMMANDS:
            hint = nearest(name, COMMANDS) or f"There are: {', '.join(COMMANDS)}."
            raise ConfigError(f"octavo bench has no {name!r}.", hint=hint)
        if any(word in ("-h", "--help") or word.startswith("--help=") for word in words):
            print(command_help(name))
            return OK
        asked = read_words(words, flags.OWN[name]) if name != "sweep" else _sweep_words(words)
    except ConfigError as error:
        sys.stderr.write(f"octavo: {error}\n")
        return USAGE
    module = importlib.import_module(f"octavo.bench.{name}")
    result: dict[str, Any] = module.run(asked)
    print(module.text(result))
    if "output_json" in asked.own:
        from octavo.bench.report import write_json

        write_json(asked.own["output_json"], result)
    return FAILED if result.get("completed") == 0 else OK


def _sweep_words(words: list[str]) -> Asked:
    """``sweep NAME ...``: the words of benchmark NAME, with those of the sweep among them."""
    name = words[0] if words else ""
    if name not in flags.SWEPT:
        raise ConfigError(
            "octavo bench sweep needs a benchmark to repeat.",
            hint=f"Such as sweep latency --vary batch-size=1,2,4. There are: {', '.join(flags.SWEPT)}.",
        )
    asked = read_words(words[1:], (*flags.SWEEP, *flags.OWN[name]), flags.SWEEP)
    return dataclasses.replace(asked, own={**asked.own, "benchmark": name})


def overview() -> str:
    """The page of ``octavo bench --help``."""
    lines = ["Usage: octavo bench SUBCOMMAND [MODEL] [--flag value ...]", "", "Subcommands:"]
    lines += [f"  {name:<14}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join([*lines, "", "octavo bench SUBCOMMAND --help shows its flags."])


def command_help(name: str) -> str:
    """The page of ``octavo bench NAME --help``."""
    what = f"{name} {'|'.join(flags.SWEPT)}" if name == "sweep" else name
    lines = [f"Usage: octavo bench {what} [MODEL] [--flag value ...]", "", COMMANDS[name], ""]
    for flag in flags.OWN[name]:
        lines += _describe(flag)
    return "\n".join([*lines, "", "Every flag of octavo serve is taken too (octavo serve --help)."])


def _describe(flag: Flag) -> list[str]:
    head = f"  --{flag.name} {METAVAR[flag.kind]}".rstrip()
    width = max(shutil.get_terminal_size((100, 24)).columns, 80) - _COLUMN
    lines = textwrap.wrap(flag.help, width)
    if len(head) >= _COLUMN:
        return [head, *[" " * _COLUMN + line for line in lines]]
    return [head.ljust(_COLUMN) + lines[0], *[" " * _COLUMN + line for line in lines[1:]]]
