"""Help, grouped: a page that fits a screen first, then groups, single flags, or everything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping

from octavo.cli.batch_flags import BATCH
from octavo.cli.convert_flags import CONVERT, QUANTIZE
from octavo.cli.inspect_flags import INSPECT
from octavo.cli.talk_flags import TALK
from octavo.cli.top_flags import TOP
from octavo.config.flag_table import GROUPS, LATER_GROUPS, Flag
from octavo.config.flag_values import METAVAR
from octavo.config.flags import Table, nearest, normal
from octavo.errors import ConfigError

_COLUMN = 34
_INTRO = """Octavo serves large language models on the machine you have.

Usage: octavo COMMAND [MODEL] [--flag value ...]
"""
_USAGE = {
    "serve": "octavo serve [MODEL] [--flag value ...]",
    "chat": "octavo chat [MODEL [QUESTION]] [--url URL] [--flag value ...]",
    "complete": "octavo complete [MODEL [TEXT]] [--url URL] [--flag value ...]",
    "run": "octavo run [MODEL [QUESTION]] [--url URL] [--flag value ...]",
    "run-batch": "octavo run-batch -i IN.jsonl -o OUT.jsonl [--model MODEL] [--flag value ...]",
    "bench": "octavo bench throughput|latency|serve [--flag value ...]",
    "convert": "octavo convert SRC DST [--to gguf|safetensors] [--outtype TYPE]",
    "quantize": "octavo quantize SRC DST --scheme int4|int8|w8a8|gptq [--text FILE] [--group-size N]",
    "inspect": "octavo inspect MODEL [--base MODEL] [--json] [--max-model-len N] [--flag value ...]",
    "top": "octavo top [URL] [--once] [--interval SECONDS] [--api-key KEY]",
    "collect-env": "octavo collect-env",
}


def overview(commands: Mapping[str, tuple[str, str]]) -> str:
    """The page of ``octavo --help``."""
    lines = [_INTRO, "Commands:"]
    lines += [f"  {name:<14}{text}" for name, (_, text) in commands.items()]
    lines += [
        "",
        "A model is a folder, a GGUF file or a hub id, which is downloaded; without one the bundled pocket",
        "model answers. octavo COMMAND --help shows a command's flags, octavo --version the version.",
    ]
    return "\n".join(lines)


def command_help(command: str, topic: str, summary: str) -> str:
    """The page of ``octavo COMMAND --help[=TOPIC]``: TOPIC is a group, a flag, ``all`` or nothing."""
    head = f"Usage: {_USAGE[command]}\n\n{summary}\n"
    if command in ("bench", "collect-env"):
        return head
    if command == "inspect":
        section = _section(command, "this command", INSPECT)
        return f"{head}\n{section}\n\nAlso the engine's flags of octavo serve."
    if command == "top":
        return f"{head}\n{_section(command, 'this command', TOP)}"
    if command in ("convert", "quantize"):
        flags = CONVERT if command == "convert" else QUANTIZE
        return f"{head}\n{_section(command, 'this command', flags)}"
    extra = {"chat": TALK, "complete": TALK, "run": TALK, "run-batch": BATCH}.get(command, ())
    table = Table(extra)
    if topic:
        return _topic(topic, table)
    lines = [head]
    if extra:
        lines += [_section(command, "this command", extra), ""]
    main = {"model", "engine", "server", "octavo"} if command == "serve" else {"octavo"}
    for name, title, flags in GROUPS:
        if name in main:
            lines += [_section(name, title, flags), ""]
    rest = [*[(n, t) for n, t, _ in GROUPS if n not in main], *LATER_GROUPS]
    lines.append("More, with --help=GROUP, --help=FLAG or --help=all:")
    lines += [f"  {name:<14}{title}" for name, title in rest]
    return "\n".join(lines)


def _topic(topic: str, table: Table) -> str:
    titles = {name: title for name, title, _ in GROUPS} | dict(LATER_GROUPS)
    unique = {flag.name: flag for flag in table.flags.values()}.values()
    if topic == "all":
        sections = [_section(n, t, [f for f in unique if f.group == n]) for n, t in titles.items()]
        return "\n\n".join(sections)
    if topic.lower() in titles:
        return _section(topic.lower(), titles[topic.lower()], [f for f in unique if f.group == topic.lower()])
    found = table.find(topic)
    if found:
        return "\n".join(describe(found[0]))
    hits = [flag for flag in unique if normal(topic) in flag.name]
    if hits:
        return _section(topic, "flags with this in their name", hits)
    hint = nearest(topic, [*titles, *table.flags]) or "See --help."
    raise ConfigError(f"--help: there is no group or flag {topic!r}.", hint=hint)


def _section(name: str, title: str, flags: Iterable[Flag]) -> str:
    lines = [f"{name}: {title}"]
    for flag in flags:
        lines += describe(flag)
    return "\n".join(lines)


def describe(flag: Flag) -> list[str]:
    """The lines of one flag: names, value, help, choices."""
    off = [f"--no-{flag.name}"] if flag.help.endswith("(on).") else []
    head = "  " + ", ".join([*_shorts(flag), f"--{flag.name}", *off])
    value = "|".join(flag.choices) if flag.choices and len(flag.choices) <= 3 else METAVAR[flag.kind]
    head = f"{head} {value}".rstrip()
    text = _effect(flag)
    if len(flag.choices) > 3:
        text += " One of " + ", ".join(flag.choices) + "."
    wrapped = _wrap(text, max(shutil.get_terminal_size((100, 24)).columns, 80) - _COLUMN)
    if len(head) >= _COLUMN:
        return [head, *[" " * _COLUMN + line for line in wrapped]]
    return [head.ljust(_COLUMN) + wrapped[0], *[" " * _COLUMN + line for line in wrapped[1:]]]


def _effect(flag: Flag) -> str:
    if flag.target == "none":
        return "Accepted: " + flag.help
    if flag.target == "single":
        return "Only 1: " + flag.help
    return flag.help


def _shorts(flag: Flag) -> list[str]:
    return sorted(flag.aliases, key=len)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines
