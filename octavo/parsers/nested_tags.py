"""Calls written in tags inside tags, each tag behind one mark of the vocabulary: MiniMax M3.

MARK<invoke name="f">MARK<city>ParisMARK</city>MARK<tags>MARK<item>redMARK</item>MARK</tags>MARK</invoke>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from octavo.parsers.json_calls import Body
from octavo.parsers.reader import Broken, Marks, Reader, Steps
from octavo.parsers.schema import is_text, kinds, parameter, to_json
from octavo.parsers.sink import Sink

_MAX_DEPTH = 16
_MAX_NAME = 256
_TAG_END = Marks((">",))
_ITEM = "item"

Show = Callable[[str], object]


def nested_calls(mark: str) -> Body:
    """The call behind ``<invoke name="``, every tag of which stands behind `mark`."""
    name_end = Marks(('">',))

    def body(reader: Reader, sink: Sink, opening: str) -> Steps[None]:
        name, _ = yield from reader.word(name_end, _MAX_NAME)
        sink.call(name)
        schema = sink.tools.get(name) or {}
        yield from _Tree(reader, mark, schema).members(sink.arguments, schema, "invoke", 0)
        sink.end_call()
        reader.keep()

    return body


class _Tree:
    """The tags of one call."""

    def __init__(self, reader: Reader, mark: str, root: Mapping[str, Any]) -> None:
        self._reader = reader
        self._mark = mark
        self._marks = Marks((mark,))
        self._root = root

    def members(self, show: Show, schema: Any, tag: str, depth: int, first: str = "") -> Steps[None]:
        """An object up to the end of `tag`; `first` is a member's name that has been read already."""
        before = "{"
        while key := first or (yield from self._next(tag)):
            first = ""
            # The brace goes with the first key: a brace alone is not given out.
            show(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            yield from self._value(show, self._parameter(schema, key), key, depth + 1)
        show("{}" if before == "{" else "}")

    def _items(self, show: Show, schema: Any, tag: str, depth: int, first: str) -> Steps[None]:
        """A list up to the end of `tag`, whose first item's tag has been read."""
        show("[")
        inner = schema.get("items") if isinstance(schema, Mapping) else None
        item = first
        while item:
            yield from self._value(show, inner, item, depth + 1)
            item = yield from self._next(tag)
            if item:
                show(", ")
        show("]")

    def _next(self, tag: str) -> Steps[str]:
        """The name of the tag that opens here, "" when `tag` ends. Raises Broken for anything else."""
        yield from self._reader.spaces()
        yield from self._reader.expect(self._mark)
        return (yield from self._tag(tag))

    def _tag(self, tag: str) -> Steps[str]:
        """The same behind the mark."""
        if (yield from self._reader.expect("<", "</")) == "<":
            return (yield from self._reader.word(_TAG_END, _MAX_NAME))[0]
        yield from self._reader.expect(f"{tag}>")
        return ""

    def _parameter(self, schema: Any, key: str) -> Any:
        return parameter(schema if isinstance(schema, Mapping) else None, key)[0]

    def _value(self, show: Show, schema: Any, tag: str, depth: int) -> Steps[None]:
        """What stands in `tag`: text, or tags."""
        if depth > _MAX_DEPTH:
            raise Broken
        allowed = kinds(schema, self._root)
        if is_text(allowed):
            show('"')
            yield from self._text(lambda text: show(json.dumps(text, ensure_ascii=False)[1:-1]))
            if (yield from self._tag(tag)):
                raise Broken
            show('"')
            return
        parts: list[str] = []
        yield from self._text(parts.append)
        child = yield from self._tag(tag)
        text = "".join(parts)
        if not child:
            empty = {frozenset(("array",)): "[]", frozenset(("object",)): "{}"}.get(allowed, "")
            show(empty if empty and not text.strip() else to_json(text, allowed))
        elif text.strip():
            raise Broken
        elif "array" in allowed and (child == _ITEM or "object" not in allowed):
            yield from self._items(show, schema, tag, depth, child)
        else:
            yield from self.members(show, schema, tag, depth, child)

    def _text(self, show: Show) -> Steps[None]:
        """Text up to the next mark. Raises Broken at the end."""
        if (yield from self._reader.until(self._marks, show)) is None:
            raise Broken
