"""The form of a reply that must be a call: a grammar enforces it, ReplyParser reads it (``Ask.forced``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def forced_schema(tools: Sequence[Mapping[str, Any]], name: str, *, one_call: bool) -> dict[str, Any]:
    """JSON Schema of the reply: the arguments of the function `name`, or for "" a list of calls of any.

    `tools` in OpenAI's shape. A function without parameters takes an empty object. Local references
    (``#/$defs/...``) of a function's schema keep their meaning: its definitions stand beside it.
    """
    schemas = {}
    for tool in tools:
        function = tool.get("function", tool)
        schemas[function["name"]] = _parameters(function.get("parameters"))
    if name:
        return schemas[name]
    definitions: dict[str, Any] = {}
    options = []
    for index, (function_name, schema) in enumerate(schemas.items()):
        own = {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
        for key in ("$defs", "definitions"):
            for part, value in (schema.get(key) or {}).items():
                definitions[f"{index}.{part}"] = _moved(value, index)
        options.append(_call(function_name, _moved(own, index)))
    calls: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": options}}
    if one_call:
        calls["maxItems"] = 1
    return {**calls, "$defs": definitions} if definitions else calls


def _parameters(schema: Any) -> dict[str, Any]:
    """A function's parameters as an object's schema."""
    if not isinstance(schema, Mapping) or not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


def _call(name: str, parameters: Any) -> dict[str, Any]:
    """One call in a list."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(value: Any, index: int) -> Any:
    """A schema whose local references lead to the definitions of the whole."""
    if isinstance(value, list):
        return [_moved(item, index) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item, index) for key, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str):
        for start in ("#/$defs/", "#/definitions/"):
            if reference.startswith(start):
                moved["$ref"] = f"#/$defs/{index}.{reference.removeprefix(start)}"
    return moved
