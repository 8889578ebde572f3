"""The form of tool calls: JSON with the schema of every function's parameters in it.

A call that must be made is not written in the model's own marks but as JSON alone, as in vLLM: a list of
``{"name": ..., "arguments": {...}}`` for `required`, the bare arguments for a named function. A call that the
model chooses to make to a `strict` tool stands in its own marks, with any text around it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.pipeline.schema import Options, check_depth, prepared, subschemas
from octavo.pipeline.tags import literal
from octavo.types.job import ChatOptions

if TYPE_CHECKING:
    from octavo.pipeline.tokenizer import Tokenizer

_MOST_CALLS = 32
"""Of one answer: a small model might go on for ever."""


def forced_call(chat: ChatOptions | None) -> dict[str, Any] | None:
    """The schema of an answer under a tool_choice of `required` or a named function; None for any other."""
    if chat is None or not chat.tools or not is_forced(chat):
        return None
    functions = _functions(chat.tools)
    if chat.tool_choice == "named":
        functions = [function for function in functions if function.get("name") == chat.tool_name]
        return _parameters(functions[0], "#") if functions else None
    return _list_of(functions, "arguments", chat.parallel_tool_calls)


def _list_of(functions: Sequence[Mapping[str, Any]], key: str, several: bool) -> dict[str, Any]:
    """A list of calls."""
    one = _any_call(functions, key)
    definitions = one.pop("$defs")
    most = _MOST_CALLS if several else 1
    return {"$defs": definitions, "type": "array", "minItems": 1, "maxItems": most, "items": one}


def _any_call(functions: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """A call of one of the functions; `key`: what its arguments are called."""
    definitions = {
        f"tool{i}": _parameters(function, f"#/$defs/tool{i}") for i, function in enumerate(functions)
    }
    calls = [
        call_of(function.get("name"), key, {"$ref": f"#/$defs/tool{i}"})
        for i, function in enumerate(functions)
    ]
    return {"$defs": definitions, "anyOf": calls}


class CallMarks(msgspec.Struct, frozen=True):
    """How a format of the parsers marks calls that are JSON objects with a name in them."""

    begin: str = ""
    """Empty: an answer that begins with a brace is a call."""
    end: str = ""
    listed: bool = False
    arguments: str = "arguments"


CALL_MARKS: dict[str, CallMarks] = {
    "hermes": CallMarks("<tool_call>", "</tool_call>"),
    "longcat": CallMarks("<longcat_tool_call>", "</longcat_tool_call>"),
    "granite-20b-fc": CallMarks("<function_call>"),
    "granite": CallMarks("<|tool_call|>", listed=True),
    "internlm": CallMarks("<|action_start|><|plugin|>", "<|action_end|>", arguments="parameters"),
    "jamba": CallMarks("<tool_calls>", "</tool_calls>", listed=True),
    "mistral": CallMarks("[TOOL_CALLS]", listed=True),
    "phi4_mini_json": CallMarks("functools", listed=True),
    "llama3_json": CallMarks(arguments="parameters"),
}
"""By the parsers' names. In other formats a strict tool's schema holds only where its call is forced."""


def is_forced(chat: ChatOptions | None) -> bool:
    """Whether the answer must be a call."""
    return chat is not None and bool(chat.tools) and chat.tool_choice in ("required", "named")


def may_call(chat: ChatOptions | None, strict: bool) -> bool:
    """Whether the answer may be a call; `strict`: of a strict tool."""
    if chat is None or not chat.parse or not chat.tools or chat.tool_choice != "auto":
        return False
    return not strict or any(function.get("strict") is True for function in _functions(chat.tools))


def chosen_calls(
    chat: ChatOptions, marks: CallMarks, tokenizer: Tokenizer, options: Options, answer: Any = None
) -> str:
    """The Lark grammar of an answer that may hold calls. Raises BadRequest.

    Without `answer` there may be any text around them; with it (a JSON Schema) the answer is calls or that.
    """
    functions = _functions(chat.tools or ())
    held = [f if f.get("strict") is True else {**f, "parameters": {"type": "object"}} for f in functions]
    form = _any_call(held, marks.arguments)
    if marks.listed:
        form = _list_of(held, marks.arguments, chat.parallel_tool_calls)
    lines = [f"call: {_document(form, options)}", r"text: /(.|\n)*/", r"ws: /[ \n]{0,4}/"]
    if answer is not None:
        lines.append(f"answer: {_document(answer, options)}")
    if not marks.begin:
        other = "answer" if answer is not None else r"/([^{ \n](.|\n)*)?/"
        return "\n".join([f"start: ws call | {other}", *lines])
    begin = _written(marks.begin, tokenizer)
    end = f"ws {_written(marks.end, tokenizer)}" if marks.end else ""
    several = chat.parallel_tool_calls and not marks.listed
    lines.append(f"one: {begin} ws call {end}")
    if answer is not None:
        return "\n".join([f"start: answer | one{' (ws one)*' if several else ''}", *lines])
    many = "*" if several else "?"
    if begin.startswith("<["):
        return "\n".join([f"start: (text one){many} text", *lines])
    lead = rf"lead[lazy]: /(.|\n)*/ {begin}"
    return "\n".join([f"start: (lead ws call {end}){many} text", lead, *lines])


def _document(schema: Any, options: Options) -> str:
    return f"%json {json.dumps({**prepared(schema, options), 'x-guidance': options.overrides()})}"


def _written(mark: str, tokenizer: Tokenizer) -> str:
    """A mark in Lark: special tokens by their ids, other text as it is."""
    ids = tokenizer.encode(mark, add_special_tokens=False)
    if ids and all(i in tokenizer.special_ids for i in ids):
        return " ".join(f"<[{i}]>" for i in ids)
    return literal(mark)


def call_of(name: Any, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, key: arguments},
        "required": ["name", key],
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
