"""Calls written in tags, one tag for each argument: Qwen3-Coder, Seed, GLM, MiniMax, DeepSeek V3.2."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from octavo.parsers.json_calls import Body
from octavo.parsers.reader import Broken, Marks, Reader, Steps
from octavo.parsers.schema import is_text, kinds, parameter, to_json
from octavo.parsers.sink import Sink

_MAX_NAME = 512


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """The tags of one format."""

    call: tuple[str, ...]
    """What stands before a function's name, as the opening mark or behind it."""
    name_ends: tuple[str, ...]
    parameter: str
    key_ends: tuple[str, ...]
    value: str = ""
    """What stands between an argument's key and its value besides."""
    text_keys: tuple[str, ...] = ()
    """Those of `key_ends` that say that the value is a string."""
    value_end: str
    end: str
    outer_ends: tuple[str, ...] = ()
    """What may follow the last call."""
    trim: bool = False
    """A line feed at each end of a value is layout."""


def tagged_calls(tags: Tags) -> Body:
    """The calls behind an opening mark, in `tags`."""
    names = Marks((*tags.name_ends, tags.parameter, tags.end))

    def body(reader: Reader, sink: Sink, mark: str) -> Steps[None]:
        if mark not in tags.call:
            yield from reader.spaces()
            yield from reader.expect(*tags.call)
        while True:
            name, end = yield from reader.word(names, _MAX_NAME)
            yield from _call(reader, sink, tags, name.strip("\"'"), end)
            reader.keep()
            yield from reader.spaces()
            if (yield from reader.literal(*tags.call, *tags.outer_ends)) not in tags.call:
                return

    return body


def _call(reader: Reader, sink: Sink, tags: Tags, name: str, mark: str) -> Steps[None]:
    """One call, from behind its name to its end; `mark` ended the name."""
    sink.call(name)
    keys = Marks(tags.key_ends)
    count = 0
    while True:
        if mark not in (tags.parameter, tags.end):
            yield from reader.spaces()
            mark = yield from reader.expect(tags.parameter, tags.end)
        if mark == tags.end:
            break
        key, ending = yield from reader.word(keys, _MAX_NAME)
        if tags.value:
            yield from reader.spaces()
            yield from reader.expect(tags.value)
        # The brace goes with the first key: a brace alone is not given out.
        sink.arguments(("{" if not count else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        mark = yield from _value(reader, sink, tags, (name, key), ending)
        count += 1
    sink.arguments("}" if count else "{}")
    sink.end_call()


def _value(reader: Reader, sink: Sink, tags: Tags, place: tuple[str, str], ending: str) -> Steps[str]:
    """A value; the mark behind it. One that can only be a string is given as it comes."""
    name, key = place
    schema, root = parameter(sink.tools.get(name), key)
    allowed = kinds(schema, root)
    if ending in tags.text_keys:
        allowed = frozenset(("string",))
    if is_text(allowed):
        sink.arguments('"')
        lines = _Lines(lambda text: sink.arguments(json.dumps(text, ensure_ascii=False)[1:-1]), tags.trim)
        mark = yield from _until_end(reader, tags, lines)
        sink.arguments('"')
        return mark
    parts: list[str] = []
    mark = yield from _until_end(reader, tags, _Lines(parts.append, tags.trim))
    sink.arguments(to_json("".join(parts), allowed))
    return mark


def _until_end(reader: Reader, tags: Tags, lines: _Lines) -> Steps[str]:
    """A value's text up to its end, which models forget now and then. Raises Broken without one."""
    mark = yield from reader.until(Marks((tags.value_end, tags.parameter, tags.end)), lines.add)
    if mark is None:
        raise Broken
    return mark


class _Lines:
    """Text on its way out, without a line feed at its beginning and one at its end where these are layout."""

    def __init__(self, show: Callable[[str], object], trim: bool) -> None:
        self._show = show
        self._trim = trim
        self._begun = False
        self._held = ""

    def add(self, text: str) -> None:
        """More of it; never empty."""
        if self._trim:
            if not self._begun:
                text = text.removeprefix("\n")
            self._begun = True
            text, self._held = self._held + text, ""
            if text.endswith("\n"):
                text, self._held = text[:-1], "\n"
        if text:
            self._show(text)
