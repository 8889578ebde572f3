"""The form of a tool call that must be made: JSON with the schema of every function's parameters in it.

A forced call is not written in the model's own marks but as JSON alone, as in vLLM: a list of
``{"name": ..., "arguments": {...}}`` for `required`, the bare arguments for a named function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.pipeline.schema import check_depth, subschemas
from octavo.types.job import ChatOptions

_MOST_CALLS = 32
"""Of one answer: a small model might go on for ever."""


def forced_call(chat: ChatOptions | None) -> dict[str, Any] | None:
    """The schema of an answer under a tool_choice of `required` or a named function; None for any other."""
    if chat is None or not chat.tools or chat.tool_choice not in ("required", "named"):
        return None
    functions = _functions(chat.tools)
    if chat.tool_choice == "named":
        functions = [function for function in functions if function.get("name") == chat.tool_name]
        return _parameters(functions[0], "#") if functions else None
    definitions = {
        f"tool{i}": _parameters(function, f"#/$defs/tool{i}") for i, function in enumerate(functions)
    }
    calls = [
        call_of(function.get("name"), {"$ref": f"#/$defs/tool{i}"}) for i, function in enumerate(functions)
    ]
    most = _MOST_CALLS if chat.parallel_tool_calls else 1
    items = {"anyOf": calls}
    return {"$defs": definitions, "type": "array", "minItems": 1, "maxItems": most, "items": items}


def call_of(name: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _functions(tools: Sequence[Any]) -> list[Mapping[str, Any]]:
    """What tools offer, in OpenAI's shape or bare."""
    found = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    return [function for function in found if isinstance(function, Mapping) and function.get("name")]


def _parameters(function: Mapping[str, Any], root: str) -> dict[str, Any]:
    """The schema of a function's arguments, an object, with its references led to where it stands.

    A function without parameters takes ``{}`` and nothing else.
    """
    given = function.get("parameters") or {}
    if not isinstance(given, dict) or not given or given.get("properties") == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    check_depth(given)
    schema: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(given))
    schema.pop("$schema", None)
    schema.pop("$id", None)
    schema["type"] = "object"
    for part in subschemas(schema):
        ref = part.get("$ref")
        if isinstance(ref, str) and ref.startswith("#"):
            part["$ref"] = root + ref[1:]
    return schema
