"""Calls written as Python: ``[get_weather(city="Paris", days=3), ...]``."""

from __future__ import annotations

import json
import re

from octavo.parsers.json_calls import Body, json_calls
from octavo.parsers.json_text import PYTHON, json_value
from octavo.parsers.reader import Broken, Reader, Steps
from octavo.parsers.sink import Sink

_NAME = re.compile(r"[\w.\-]*")
_MAX_NAME = 256


def pythonic_calls(close: tuple[str, ...] = (), *, listed: bool = True) -> Body:
    """A list of calls, then one of `close` where the model writes it; `listed` False: calls on lines.

    The opening mark may be the list's own bracket. Objects in JSON in place of the calls are taken too.
    """
    objects = json_calls(close)

    def body(reader: Reader, sink: Sink, mark: str) -> Steps[None]:
        if mark != "[":
            char = yield from reader.spaces()
            if char == "{":
                yield from objects(reader, sink, mark)
                return
            if listed:
                yield from reader.expect("[")
        if listed and (yield from reader.spaces()) == "{":
            yield from objects(reader, sink, "[")
            return
        yield from _calls(reader, sink, listed)
        if close:
            yield from reader.spaces()
            yield from reader.literal(*close)

    return body


def _calls(reader: Reader, sink: Sink, listed: bool) -> Steps[None]:
    """Calls up to the bracket, or up to what is no call."""
    count = 0
    while True:
        char = yield from reader.spaces()
        if listed and char == "]":
            reader.take(reader.at + 1)
            if not count:
                raise Broken
            reader.keep()
            return
        if listed and count:
            yield from reader.expect(",")
            char = yield from reader.spaces()
        if count and not listed and not (char.isalpha() or char == "_"):
            return
        name = yield from reader.run(_NAME, _MAX_NAME)
        if not name or not (name[0].isalpha() or name[0] == "_"):
            raise Broken
        yield from reader.expect("(")
        sink.call(name)
        yield from _arguments(reader, sink)
        sink.end_call()
        reader.keep()
        count += 1


def _arguments(reader: Reader, sink: Sink) -> Steps[None]:
    """Keyword arguments up to the parenthesis."""
    count = 0
    while True:
        char = yield from reader.spaces()
        if count and char == ",":
            reader.take(reader.at + 1)
            char = yield from reader.spaces()
        elif count and char != ")":
            raise Broken
        if char == ")":
            reader.take(reader.at + 1)
            break
        key = yield from reader.run(_NAME, _MAX_NAME)
        yield from reader.spaces()
        if not key.isidentifier():
            raise Broken
        yield from reader.expect("=")
        sink.arguments(("{" if not count else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        yield from json_value(reader, sink.arguments, PYTHON)
        count += 1
    sink.arguments("}" if count else "{}")
