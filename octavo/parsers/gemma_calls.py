"""Calls as Gemma writes them: ``call:get_weather{city:<escape>Paris<escape>,days:3}``."""

from __future__ import annotations

import json
import re

from octavo.parsers.json_calls import Body
from octavo.parsers.json_text import Show, colon, json_string, json_value, normalised
from octavo.parsers.reader import Broken, Marks, Reader, Steps
from octavo.parsers.sink import Sink

_NAME = re.compile(r"[\w.\-]*")
_MAX_NAME = 256
_MAX_DEPTH = 16
_BARE = re.compile(r"[^,{}\[\]<\"]*")
_MAX_BARE = 4096


def gemma_calls(quote: str, close: str) -> Body:
    """The call behind an opening mark, its strings between `quote`s, up to `close` where it is written."""
    values = _Values(quote)

    def body(reader: Reader, sink: Sink, mark: str) -> Steps[None]:
        yield from reader.spaces()
        yield from reader.expect("call:")
        name = yield from reader.run(_NAME, _MAX_NAME)
        sink.call(name)
        yield from reader.spaces()
        yield from reader.expect("{")
        yield from values.members(reader, sink.arguments, 0)
        sink.end_call()
        reader.keep()
        yield from reader.spaces()
        yield from reader.literal(close)

    return body


class _Values:
    """Values with the strings of one vocabulary."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._ends = Marks((quote,))

    def members(self, reader: Reader, show: Show, depth: int) -> Steps[None]:
        """An object whose brace has been read."""
        before = "{"
        while (char := (yield from reader.spaces())) != "}":
            if before != "{":
                if char != ",":
                    raise Broken
                reader.take(reader.at + 1)
                yield from reader.spaces()
            key = yield from self._key(reader)
            yield from colon(reader)
            # The brace goes with the first key: a brace alone is not given out.
            show(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            yield from self._value(reader, show, depth + 1)
        reader.take(reader.at + 1)
        show("{}" if before == "{" else "}")

    def _key(self, reader: Reader) -> Steps[str]:
        """A key, bare or in quotes of either kind."""
        if (yield from reader.peek()) == '"':
            return (yield from json_string(reader))
        if (yield from reader.literal(self._quote)):
            return (yield from reader.word(self._ends, _MAX_NAME))[0]
        key = yield from reader.run(_NAME, _MAX_NAME)
        if not key:
            raise Broken
        return key

    def _value(self, reader: Reader, show: Show, depth: int) -> Steps[None]:
        """Any value."""
        if depth > _MAX_DEPTH:
            raise Broken
        char = yield from reader.spaces()
        if char == "{":
            reader.take(reader.at + 1)
            yield from self.members(reader, show, depth)
        elif char == "[":
            reader.take(reader.at + 1)
            yield from self._items(reader, show, depth)
        elif char == '"':
            yield from json_value(reader, show)
        elif (yield from reader.literal(self._quote)):
            show('"')
            pieces = lambda text: show(json.dumps(text, ensure_ascii=False)[1:-1])  # noqa: E731
            if (yield from reader.until(self._ends, pieces)) is None:
                raise Broken
            show('"')
        else:
            word = (yield from reader.run(_BARE, _MAX_BARE)).strip()
            if not word or not (yield from reader.peek()):
                raise Broken
            show(normalised(word) or json.dumps(word, ensure_ascii=False))

    def _items(self, reader: Reader, show: Show, depth: int) -> Steps[None]:
        """A list whose bracket has been read."""
        show("[")
        count = 0
        while (char := (yield from reader.spaces())) != "]":
            if count:
                if char != ",":
                    raise Broken
                reader.take(reader.at + 1)
                show(", ")
            yield from self._value(reader, show, depth + 1)
            count += 1
        reader.take(reader.at + 1)
        show("]")
