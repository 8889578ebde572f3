"""Every flag in one table: found by name, parsed from words, resolved into settings.

The same table serves the command line (``--max-model-len 32k``), the config file (``max_model_len: 32k``) and
the keywords of ``LLM`` (``max_model_len=32768``). Hyphens and underscores are equal everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from octavo.config.flag_names import ACCEPTED, REASONS
from octavo.config.flag_rules import RULES, Settings
from octavo.config.flag_table import GROUPS, Flag
from octavo.config.flag_values import FALSE, TRUE, bad_value, read
from octavo.errors import ConfigError

_MARKS = {"?": "bool", "*": "words", "}": "json", "1": "int"}


class Given(NamedTuple):
    """A flag as it was given: with the spelling for messages and the raw value."""

    flag: Flag
    spelling: str
    value: Any
    path: tuple[str, ...] = ()
    """Keys inside a JSON flag: ("x", "y") of ``--flag.x.y value``."""


class Parsed(NamedTuple):
    """A command line taken apart: words that are no flags, and the flags in order."""

    positionals: tuple[str, ...]
    given: tuple[Given, ...]


class Table:
    """All flags a command knows. `extra` flags come first and win over the shared ones' names and aliases."""

    def __init__(self, extra: Iterable[Flag] = ()) -> None:
        self.flags: dict[str, Flag] = {}
        self._aliases: dict[str, Flag] = {}
        for flag in (*extra, *_shared()):
            self.flags.setdefault(flag.name, flag)
            for alias in flag.aliases:
                if alias.startswith("--"):
                    self.flags.setdefault(normal(alias), flag)
                else:
                    self._aliases.setdefault(alias, flag)

    def short(self, word: str) -> Flag | None:
        """The flag of a one-hyphen alias such as ``-tp``."""
        return self._aliases.get(word)

    def find(self, name: str) -> tuple[Flag, bool] | None:
        """The flag called `name` (any spelling), and whether the name is its ``no-`` form."""
        name = normal(name)
        if name in self.flags:
            return self.flags[name], False
        if name.startswith("no-") and (flag := self.flags.get(name[3:])) and flag.kind == "bool":
            return flag, True
        return None

    def unknown(self, spelling: str) -> ConfigError:
        """The error for a flag that does not exist, with the nearest one that does."""
        hint = nearest(spelling, self.flags, "--") or "--help=all lists every flag."
        return ConfigError(f"Unknown flag {spelling}.", hint=hint, param=spelling)


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """ "Did you mean X?" for the name most like `name`, or "" when nothing is similar."""
    import difflib

    found = difflib.get_close_matches(normal(name), list(names), n=1, cutoff=0.5)
    if not found:
        return ""
    shown = prefix + found[0] if prefix else found[0].replace("-", "_")
    return f"Did you mean {shown}?"


def normal(name: str) -> str:
    """One spelling for every way of writing a flag's name: lower case, hyphens, no leading ones."""
    return name.lstrip("-").replace("_", "-").lower()


def _shared() -> Iterable[Flag]:
    for group, _, flags in GROUPS:
        for flag in flags:
            yield flag._replace(group=group)
    for group, names, reason in ACCEPTED:
        for word in names.split():
            yield _accepted(word, group, reason)


def _accepted(word: str, group: str, reason: str) -> Flag:
    marked, *aliases = word.split("|")
    kind = _MARKS.get(marked[-1], "str") if marked[-1] in "?*}" or "#" in marked else "str"
    name = marked.split("#")[0].rstrip("?*{}")
    target = "single" if kind == "int" else "none"
    return Flag(name, kind, target, REASONS.get(name, reason), group, tuple(aliases))


# ---- words ----------------------------------------------------------------------------------------------


def parse(words: Sequence[str], table: Table) -> Parsed:
    """Take a command line apart; raises ConfigError for an unknown flag or a missing value.

    ``--flag value``, ``--flag=value``, ``--flag.key value`` for JSON flags, ``--x``/``--no-x``/``--x=false``
    for booleans, ``-tp 2`` for aliases; everything after a lone ``--`` is positional.
    """
    positionals: list[str] = []
    given: list[Given] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            positionals.extend(words[at:])
            break
        if not word.startswith("-") or word == "-" or _is_number(word):
            positionals.append(word)
            continue
        item, at = _one(word, words, at, table)
        given.append(item)
    return Parsed(tuple(positionals), tuple(given))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _looks_like_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _is_number(word)


def _one(word: str, words: Sequence[str], at: int, table: Table) -> tuple[Given, int]:
    """The flag that `word` starts and the index of the first word after its values."""
    head, equals, inline = word.partition("=")
    flag, negated, path = _identify(head, table)
    if flag is None and (short := _glued(word, table)):
        return Given(short[0], short[0].aliases[0], short[1]), at
    if flag is None:
        raise table.unknown(head)
    name = head.split(".")[0]
    if flag.kind == "bool":
        return _boolean(flag, head, negated, inline if equals else None, words, at)
    if equals:
        return Given(flag, name, inline, path), at
    if flag.kind == "words":
        end = at
        while end < len(words) and not _looks_like_flag(words[end]):
            end += 1
        if end == at:
            raise ConfigError(f"{head} needs at least one value.", param=head)
        return Given(flag, head, list(words[at:end])), end
    if at < len(words) and not _looks_like_flag(words[at]):
        return Given(flag, name, words[at], path), at + 1
    if flag.kind == "maybe":
        return Given(flag, head, "True"), at
    raise ConfigError(f"{head} needs a value.", param=head)


def _identify(head: str, table: Table) -> tuple[Flag | None, bool, tuple[str, ...]]:
    name, *keys = head.split(".")
    if not head.startswith("--"):
        flag = table.short(name)
        return flag if not keys or (flag and flag.kind == "json") else None, False, tuple(keys)
    found = table.find(name)
    if found is None or (keys and found[0].kind != "json"):
        return None, False, ()
    return found[0], found[1], tuple(keys)


def _glued(word: str, table: Table) -> tuple[Flag, str] | None:
    """``-O3`` and ``-n2``: a one-letter alias with its value in the same word."""
    flag = table.short(word[:2]) if not word.startswith("--") else None
    return (flag, word[2:]) if flag and word[2:].isdigit() else None


def _boolean(
    flag: Flag, head: str, negated: bool, inline: str | None, words: Sequence[str], at: int
) -> tuple[Given, int]:
    value: Any = True
    if inline is not None:
        value = inline
    elif at < len(words) and words[at].lower() in ("true", "false"):
        value = words[at]
        at += 1
    if negated:
        lowered = str(value).lower()
        if lowered not in TRUE | FALSE:
            raise bad_value(head, value, "true or false")
        value = lowered in FALSE
    return Given(flag, head, value), at


# ---- meaning --------------------------------------------------------------------------------------------


def resolve(given: Iterable[Given]) -> Settings:
    """Give every flag its meaning; a later one wins over an earlier one. ConfigError names what is wrong."""
    settings = Settings()
    for item in given:
        _apply(settings, item)
    return settings


def _apply(settings: Settings, item: Given) -> None:
    flag = item.flag
    raw = _nested(item) if item.path else item.value
    if flag.target == "none":
        _accept(settings, item, raw)
        return
    value = read(item.spelling, flag.kind, raw, flag.choices, flag.least, flag.most)
    if value is None and flag.kind != "length":
        return
    if flag.target == "single":
        _single(settings, item, value)
        return
    where, _, field = flag.target.partition(".")
    if where == "rule":
        RULES[field](settings, value, item.spelling)
        return
    store: dict[str, Any] = getattr(settings, where)
    if isinstance(value, dict) and item.path:
        value = {**store.get(field, {}), **value}
    store[field] = value


def _nested(item: Given) -> dict[str, Any]:
    try:
        value = json.loads(item.value)
    except ValueError:
        value = item.value
    for key in reversed(item.path):
        value = {key: value}
    return {str(k): v for k, v in value.items()}


def _accept(settings: Settings, item: Given, raw: Any) -> None:
    if item.flag.kind == "bool" and not read(item.spelling, "bool", raw):
        return
    settings.notice(item.spelling, f"accepted; {item.flag.help}")


def _single(settings: Settings, item: Given, value: int) -> None:
    if value > 1:
        raise ConfigError(
            f"{item.spelling}: {value} is not possible here: {item.flag.help}",
            hint="Leave the flag out, or start one Octavo per machine behind a load balancer.",
            param=item.spelling,
        )


def from_keywords(keywords: Mapping[str, Any], table: Table | None = None) -> Settings:
    """Resolve Python keywords (``max_model_len=4096``); None means "not given".

    An unknown keyword is a TypeError that names the nearest one, as for any Python call.
    """
    table = table or Table()
    given: list[Given] = []
    for name, value in keywords.items():
        found = table.find(name)
        if found is None:
            raise TypeError(f"Unknown argument {name!r}. {nearest(name, table.flags)}".strip())
        if value is not None:
            given.append(Given(found[0], name, (not value) if found[1] else value))
    return resolve(given)


def from_mapping(mapping: Mapping[str, Any], table: Table, source: str) -> tuple[Given, ...]:
    """The flags of a config file read from `source`; a key may be written with ``-`` or ``_``."""
    given: list[Given] = []
    for key, value in mapping.items():
        found = table.find(str(key))
        if found is None:
            hint = nearest(str(key), table.flags)
            raise ConfigError(f"{source}: unknown key {key!r}.", hint=hint, param=str(key))
        flag, negated = found
        if flag.kind == "bool" and negated:
            value = not read(str(key), "bool", value)
        if value is not None:
            given.append(Given(flag, f"{source}: {key}", value))
    return tuple(given)


def read_config_file(path: str, table: Table) -> tuple[Given, ...]:
    """The flags of a YAML file; ConfigError when it cannot be read or is no mapping."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"--config: {path}{where} is not valid YAML: {problem or str(error).splitlines()[0]}."
        ) from None
    if content is None:
        return ()
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold keys and values, such as 'port: 8000'.")
    return from_mapping(content, table, path)


POCKET_NOTICE = (
    "No model named: the bundled pocket model answers, which only shows that the system works. "
    "A real one is a folder, a GGUF file or a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
)
"""The line on stderr of every command, and of LLM(), that was given no model."""
