"""From what a person typed (or passed as a keyword) to a value of the right type, or one clear sentence.

A *kind* names how a value is read: ``bool``, ``int`` (also ``32k`` and ``1K``), ``float``, ``str``, ``words``
(one or more words, or a JSON list), ``json`` (an object), ``size`` (bytes; ``2GiB``), ``length`` (an int, or
``auto``), ``maybe`` (a string that may be left out).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from octavo.errors import ConfigError

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "length": "a whole number of tokens (32k is 32000, 32K is 32768) or auto",
    "float": "a number",
    "str": "a text",
    "maybe": "a text",
    "words": "one or more words, or a JSON list of them",
    "json": "a JSON object, such as '{\"key\": 1}'",
    "size": "a size such as 2GiB, 512MB or a number of bytes",
}
METAVAR = {"int": "N", "length": "N", "float": "X", "str": "TEXT", "maybe": "[TEXT]", "words": "WORD ..."}
METAVAR |= {"json": "JSON", "size": "SIZE", "bool": ""}


def bad_value(name: str, value: Any, accepted: str) -> ConfigError:
    """The error of one flag or keyword: which, what was given, what is accepted."""
    return ConfigError(f"{name}: {value!r} is not accepted; give {accepted}.", param=name)


def read(
    name: str,
    kind: str,
    value: Any,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """`value` (a string from a command line, or any Python value) as `kind`; ConfigError names `name`.

    The words ``None`` and ``null`` stand for "not given" and become None, except inside JSON.
    """
    if value is None or (isinstance(value, str) and value in ("None", "null", "") and kind != "str"):
        return None
    try:
        result = _READERS[kind](value)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise bad_value(name, value, EXPECTED[kind]) from None
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        _check_bounds(name, value, result, least, most)
    if choices:
        for item in result if isinstance(result, tuple) else (result,):
            if str(item) not in choices:
                raise bad_value(name, item, "one of " + ", ".join(choices))
    return result


def _check_bounds(name: str, value: Any, number: float, least: float | None, most: float | None) -> None:
    if least is not None and most is not None and not least <= number <= most:
        raise bad_value(name, value, f"a number from {least:g} to {most:g}")
    if least is not None and number < least:
        raise bad_value(name, value, f"a number from {least:g}")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(text)


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("bool")
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if value != int(value):
            raise ValueError(value)
        return int(value)
    text = str(value).strip().replace("_", "")
    factor = _DECIMAL.get(text[-1:]) or _BINARY.get(text[-1:])
    if factor is None:
        return int(text)
    number = float(text[:-1]) * factor
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _length(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    number = _int(value)
    return None if number == -1 else number


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("bool")
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return _words_of_text(value)
    words: list[str] = []
    for item in value:
        known = item.__name__ if isinstance(item, type) else item
        words.extend(_words_of_text(known) if isinstance(known, str) else [json.dumps(known)])
    return tuple(words)


def _words_of_text(text: str) -> tuple[str, ...]:
    if text.lstrip().startswith("["):
        items = json.loads(text)
        return tuple(item if isinstance(item, str) else json.dumps(item) for item in items)
    return (text,) if text else ()


def _json(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, dict):
        return value
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    raise TypeError(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    from octavo.config.environment import parse_size

    return parse_size(str(value), unit=1)


_READERS: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "length": _length,
    "float": _float,
    "str": str,
    "maybe": str,
    "words": _words,
    "json": _json,
    "size": _size,
}
