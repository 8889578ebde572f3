"""`oneOf` where no value fits two of its branches: then it means what `anyOf` means, which can be compiled.

Such are the unions that pydantic and other libraries write for a field that tells the kinds apart.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec

_MOST_BRANCHES = 64
_TYPES = ("null", "boolean", "object", "array", "number", "string")
_MOST_REFS = 8


def as_any_of(part: dict[str, Any], root: dict[str, Any]) -> None:
    """Turn the `oneOf` of a schema into `anyOf` in place if its branches are told apart."""
    branches = part.get("oneOf")
    if not isinstance(branches, list) or not 0 < len(branches) <= _MOST_BRANCHES:
        return
    known = [_resolved(branch, root) for branch in branches]
    if not all(_apart(a, b, root) for a, b in combinations(known, 2)):
        return
    del part["oneOf"]
    if "anyOf" in part:
        part["allOf"] = [*part.get("allOf", []), {"anyOf": branches}]
    else:
        part["anyOf"] = branches


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """The schema that local references lead to; {} for what cannot be told."""
    for _ in range(_MOST_REFS):
        if not isinstance(schema, dict):
            return {}
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            return schema
        if not ref.startswith("#/"):
            return {}
        schema = root
        for step in ref[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, dict) else None
    return {}


def _apart(a: dict[str, Any], b: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether no value fits both schemas, as far as types, constants and one property of objects tell."""
    values = _values(a), _values(b)
    if values[0] is not None and values[1] is not None:
        return not values[0] & values[1]
    types = _types(a), _types(b)
    if not types[0] & types[1]:
        return True
    if types[0] & types[1] != {"object"}:
        return False
    mine, theirs = _required(a), _required(b)
    for name in mine.keys() & theirs.keys():
        one, other = _values(_resolved(mine[name], root)), _values(_resolved(theirs[name], root))
        if one is not None and other is not None and not one & other:
            return True
    return False


def _required(schema: dict[str, Any]) -> dict[str, Any]:
    """The properties that an object must have."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: properties[name] for name in required if isinstance(name, str) and name in properties}


def _types(schema: dict[str, Any]) -> set[str]:
    """The types that values of a schema may have; integers count as numbers."""
    values = _values(schema)
    if values is not None:
        return {kind for kind, _ in values}
    given = schema.get("type", list(_TYPES))
    names = given if isinstance(given, list) else [given]
    return {"number" if name == "integer" else str(name) for name in names}


def _values(schema: dict[str, Any]) -> set[tuple[str, Any]] | None:
    """The values that `const` or `enum` leave, as (type, something to compare); None: any."""
    if "const" in schema:
        return {_key(schema["const"])}
    listed = schema.get("enum")
    return {_key(value) for value in listed} if isinstance(listed, list) else None


def _key(value: Any) -> tuple[str, Any]:
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, (int, float)):
        return "number", value
    if isinstance(value, str):
        return "string", value
    return ("array" if isinstance(value, list) else "object"), msgspec.json.encode(value, order="sorted")
