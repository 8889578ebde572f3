"""JSON Schemas on their way to llguidance: bounded, and refused where an answer could break them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.pipeline.unions import as_any_of

MAX_BYTES = 512 << 10
MAX_DEPTH = 64
_MAX_PROPERTIES = 2_000
"""Of one object: llguidance's time grows with their square (0.4 s here)."""

_FOURTHS = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_FOURTHS}|{_FOURTHS}00|0000)-02-29)"
)
_TIME = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_FORMATS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "hostname": {"pattern": f"^{_LABEL}(?:[.]{_LABEL})*$", "maxLength": 253},
}
"""RFC 3339 and RFC 1123 exactly (without leap seconds), where llguidance lets a little more through."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items", "additionalItems", "not", "if", "then", "else", "contains")


class Options(msgspec.Struct, frozen=True):
    """How JSON is to be written."""

    whitespace: str
    """A regular expression of what may stand between the parts; empty: nothing."""
    closed: bool = False
    """Objects have only the properties that their schemas name."""

    def overrides(self) -> dict[str, Any]:
        """llguidance's options."""
        if self.whitespace:
            return {"whitespace_pattern": self.whitespace, "lenient": False, "coerce_one_of": False}
        return {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}


def grammar(schema: Any, options: Options) -> str:
    """llguidance's text of the grammar of one JSON document. Raises BadRequest."""
    from llguidance import LLMatcher

    checked = prepared(schema, options)
    try:
        return str(LLMatcher.grammar_from_json_schema(checked, overrides=options.overrides()))
    except ValueError as error:
        raise BadRequest(f"The schema cannot be used: {str(error)[:300]}.") from None


def prepared(schema: Any, options: Options) -> Any:
    """The schema as llguidance gets it. Raises BadRequest for one that is too large or no schema."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise BadRequest(f"A JSON Schema is an object, not {_kind(schema)}.")
    check_depth(schema)
    encoded = msgspec.json.encode(schema)
    if len(encoded) > MAX_BYTES:
        raise BadRequest(f"The schema has {len(encoded)} bytes; the limit is {MAX_BYTES}.")
    for part in subschemas(schema):
        check_part(part)
    schema = msgspec.json.decode(encoded)
    for part in list(subschemas(schema)):
        as_any_of(part, schema)
        if isinstance(part.get("format"), str) and (exact := _FORMATS.get(part["format"])) is not None:
            del part["format"]
            part["allOf"] = [*part.get("allOf", []), exact]
        if options.closed and ("properties" in part or part.get("type") == "object"):
            part.setdefault("additionalProperties", False)
    return schema


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside it."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part
        for name in _MAPS:
            if isinstance(inner := part.get(name), dict):
                waiting += inner.values()
        for name in _LISTS:
            if isinstance(inner := part.get(name), list):
                waiting += inner
        for name in _SINGLE:
            inner = part.get(name)
            waiting += inner if isinstance(inner, list) else [inner]


def check_part(part: dict[str, Any]) -> None:
    """Refuse a schema of too many properties and one with something else in the place of a list."""
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
        raise BadRequest(
            f"The schema has an object of {len(properties)} properties; the limit is {_MAX_PROPERTIES}."
        )
    for name in (*_LISTS, "enum"):
        if not isinstance(part.get(name, []), list):
            raise BadRequest(f"{name} in a schema is a list, not {_kind(part[name])}.")


def check_depth(value: Any) -> None:
    """Refuse values nested deeper than MAX_DEPTH."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
