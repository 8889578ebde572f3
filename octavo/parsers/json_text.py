"""JSON read as it comes: checked, with small slips of models mended, and handed on in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from octavo.parsers.reader import Broken, Reader, Steps

Show = Callable[[str], object]

PYTHON = "\"'"
"""The quotes of Python's strings; JSON has only the first."""
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
_WORD = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {word: word for word in ("true", "false", "null")} | {
    "True": "true",
    "False": "false",
    "None": "null",
}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_SHOWN = {"}": "}", "]": "]", ")": "]"}
_OPENERS = {'"': "{[", PYTHON: "{[("}
_HEX = tuple("0123456789abcdefABCDEF")
_MAX_DEPTH = 128
_MAX_WORD = 400
_SURROGATE = re.compile("[\ud800-\udfff]")


def json_value(reader: Reader, show: Show, quotes: str = '"') -> Steps[None]:
    """Read one value and hand its text to `show`, spaced as ``json.dumps`` does it.

    What `show` got is the beginning of a valid value at any time. Python's True, False and None, raw control
    characters in strings and needless backslashes are mended; with both `quotes` Python's own literals are
    read. Raises Broken for anything else.
    """
    closers: list[str] = []
    while True:
        char = yield from reader.spaces()
        if char and char in _OPENERS[quotes]:
            if (yield from _open(reader, show, closers, quotes)):
                continue
        elif char and char in quotes:
            yield from _string(reader, show)
        else:
            yield from _word(reader, show)
        if (yield from _after(reader, show, closers, quotes)):
            return


def _open(reader: Reader, show: Show, closers: list[str], quotes: str) -> Steps[bool]:
    """Enter an object or a list; True when a value is to come, False when it was empty."""
    if len(closers) >= _MAX_DEPTH:
        raise Broken
    closer = _CLOSERS[reader.take(reader.at + 1)]
    show("{" if closer == "}" else "[")
    if (yield from reader.spaces()) == closer:
        reader.take(reader.at + 1)
        show(_SHOWN[closer])
        return False
    closers.append(closer)
    if closer == "}":
        yield from _key(reader, show, quotes)
    return True


def _after(reader: Reader, show: Show, closers: list[str], quotes: str) -> Steps[bool]:
    """What follows a value; True when the outermost one is complete."""
    while closers:
        char = yield from reader.spaces()
        comma = char == ","
        if comma:
            reader.take(reader.at + 1)
            char = (yield from reader.spaces()) if quotes == PYTHON else ""
        if char == closers[-1]:
            reader.take(reader.at + 1)
            show(_SHOWN[closers.pop()])
        elif comma:
            show(", ")
            if closers[-1] == "}":
                yield from _key(reader, show, quotes)
            return False
        else:
            raise Broken
    return True


def _key(reader: Reader, show: Show, quotes: str) -> Steps[None]:
    """A key with its colon."""
    char = yield from reader.spaces()
    if not char or char not in quotes:
        raise Broken
    yield from _string(reader, show)
    yield from colon(reader)
    show(": ")


def colon(reader: Reader) -> Steps[None]:
    """Read the colon behind a key."""
    if (yield from reader.spaces()) != ":":
        raise Broken
    reader.take(reader.at + 1)


def _string(reader: Reader, show: Show) -> Steps[None]:
    """A string; the reader stands at its first quote."""
    quote = reader.take(reader.at + 1)
    plain = _PLAIN[quote]
    show('"')
    while True:
        char = yield from reader.peek()
        if char == quote:
            reader.take(reader.at + 1)
            show('"')
            return
        if char == "\\":
            yield from _escape(reader, show)
        elif not char:
            raise Broken
        elif found := plain.match(reader.text, reader.at):
            show(reader.take(found.end()))
        else:
            show(json.dumps(reader.take(reader.at + 1))[1:-1])


def _escape(reader: Reader, show: Show) -> Steps[None]:
    """A backslash and what it stands before."""
    reader.take(reader.at + 1)
    char = yield from reader.peek()
    if not char:
        raise Broken
    reader.take(reader.at + 1)
    if char in '"\\/bfnrt':
        show("\\" + char)
    elif char == "'":
        show("'")
    elif char in "ux":
        size = 4 if char == "u" else 2
        digits = ""
        while len(digits) < size and (yield from reader.peek()) in _HEX:
            digits += reader.take(reader.at + 1)
        show("\\u" + digits.rjust(4, "0") if len(digits) == size else f"\\\\{char}{digits}")
    else:
        show("\\\\" + json.dumps(char, ensure_ascii=False)[1:-1])


def _word(reader: Reader, show: Show) -> Steps[None]:
    """A number, true, false or null; shown once it is whole."""
    word = yield from reader.run(_WORD, _MAX_WORD)
    if word in _WORDS:
        show(_WORDS[word])
    elif _NUMBER.fullmatch(word):
        show(word)
    else:
        raise Broken


def json_string(reader: Reader) -> Steps[str]:
    """The value of a string; the reader stands at its first quote. Raises Broken."""
    parts: list[str] = []
    yield from _string(reader, parts.append)
    text: str = json.loads("".join(parts))
    return clean(text)


def normalised(text: str) -> str | None:
    """The JSON of a text that is one JSON value or Python literal, None for any other."""
    reader = Reader()
    reader.feed(text)
    reader.ended = True
    parts: list[str] = []
    try:
        for _ in json_value(reader, parts.append, PYTHON):
            return None  # it never waits at the end of the text
    except Broken:
        return None
    return "".join(parts) if not reader.text[reader.at :].strip() else None


def members(text: str) -> dict[str, Any]:
    """The object that `text` begins, as far as its members are complete; {} for anything but an object."""
    closers: list[str] = []
    end, left = 0, tuple[str, ...]()  # up to where it stands, and what closes it then
    in_string = escaped = False
    for at, char in enumerate(text):
        if in_string:
            escaped, in_string = char == "\\" and not escaped, char != '"' or escaped
        elif char == '"':
            in_string = True
        elif char == ",":
            end, left = at, tuple(closers)
        elif char in "{[":
            closers.append(_CLOSERS[char])
            end, left = at + 1, tuple(closers)
        elif char in "}]" and closers:
            closers.pop()
            end, left = at + 1, tuple(closers)
    whole = text[:end] + "".join(reversed(left))
    try:
        value = json.loads(whole or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def clean(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 can hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
