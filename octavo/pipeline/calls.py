"""The form of tool calls: the model's own marks, with the schema of every function's parameters between them.

A call that the model chooses to make to a `strict` tool stands among any text. Where a format has no rules
(:mod:`octavo.pipeline.marks`), or cannot hold a schema, a call that must be made is JSON alone, as in vLLM: a
list of ``{"name": ..., "arguments": {...}}`` for `required`, the bare arguments for a named function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.pipeline.marks import Body, CallMarks
from octavo.pipeline.rules import TEXT, Rules
from octavo.pipeline.schema import Options, check_depth, check_part, subschemas
from octavo.pipeline.values import plain
from octavo.types.job import ChatOptions

if TYPE_CHECKING:
    from octavo.pipeline.tokenizer import Tokenizer

_MOST_CALLS = 32
"""Of one answer: a small model might go on for ever."""
_PLAIN = CallMarks(listed=True)


def forced_call(chat: ChatOptions | None) -> dict[str, Any] | None:
    """The schema of an answer under a tool_choice of `required` or a named function; None for any other."""
    if chat is None or not chat.tools or not is_forced(chat):
        return None
    functions = _functions(chat.tools)
    if chat.tool_choice == "named":
        functions = [function for function in functions if function.get("name") == chat.tool_name]
        return _parameters(functions[0], "#") if functions else None
    return _list_of(functions, _PLAIN, chat.parallel_tool_calls)


def _list_of(functions: Sequence[Mapping[str, Any]], marks: CallMarks, several: bool) -> dict[str, Any]:
    """A list of calls."""
    one = _any_call(functions, marks)
    definitions = one.pop("$defs")
    most = _MOST_CALLS if several else 1
    return {"$defs": definitions, "type": "array", "minItems": 1, "maxItems": most, "items": one}


def _any_call(functions: Sequence[Mapping[str, Any]], marks: CallMarks) -> dict[str, Any]:
    """A call of one of the functions."""
    definitions = {
        f"tool{i}": _parameters(function, f"#/$defs/tool{i}") for i, function in enumerate(functions)
    }
    calls = [
        _call_of(str(function.get("name")), marks, {"$ref": f"#/$defs/tool{i}"})
        for i, function in enumerate(functions)
    ]
    return {"$defs": definitions, "anyOf": calls}


def is_forced(chat: ChatOptions | None) -> bool:
    """Whether the answer must be a call."""
    return chat is not None and bool(chat.tools) and chat.tool_choice in ("required", "named")


def may_call(chat: ChatOptions | None, strict: bool) -> bool:
    """Whether the answer may be a call; `strict`: of a strict tool."""
    if chat is None or not chat.parse or not chat.tools or chat.tool_choice != "auto":
        return False
    return not strict or any(function.get("strict") is True for function in _functions(chat.tools))


def forced_calls(chat: ChatOptions, marks: CallMarks, tokenizer: Tokenizer, options: Options) -> str:
    """The Lark grammar of an answer that is calls in the model's own marks. Raises BadRequest, Unheld."""
    functions = _functions(chat.tools or ())
    if chat.tool_choice == "named":
        functions = [function for function in functions if function.get("name") == chat.tool_name]
    rules = Rules(options, tokenizer)
    several = chat.parallel_tool_calls and chat.tool_choice != "named"
    section = _Section(rules, marks, functions, several)
    thought = ""
    if marks.lead:
        before, after = marks.lead.split("#")
        thought = f"({rules.written(before)} {rules.until(after)})?"
    return rules.source(f"{thought} {_WS} {section.whole()}")


def chosen_calls(
    chat: ChatOptions, marks: CallMarks, tokenizer: Tokenizer, options: Options, answer: Any = None
) -> str:
    """The Lark grammar of an answer that may hold calls. Raises BadRequest, Unheld.

    Without `answer` there may be any text around them; with it (a JSON Schema) the answer is calls or that.
    """
    functions = _functions(chat.tools or ())
    held = [f if f.get("strict") is True else {**f, "parameters": {"type": "object"}} for f in functions]
    rules = Rules(options, tokenizer)
    section = _Section(rules, marks, held, chat.parallel_tool_calls)
    if answer is not None:
        return rules.source(f"{rules.document(answer)} | {section.whole()}")
    if not marks.begin:
        first = "[" if marks.listed else "{"
        other = rules.rule(rf"/([^{re.escape(first)} \n](.|\n)*)?/")
        return rules.source(f"{_WS} {section.whole()} | {other}")
    return rules.source(section.among_text())


_WS = r"/[ \n]{0,4}/"


class _Section:
    """How calls of some functions stand in an answer."""

    def __init__(
        self, rules: Rules, marks: CallMarks, functions: Sequence[Mapping[str, Any]], several: bool
    ) -> None:
        self._rules = rules
        self._marks = marks
        self._several = several and not marks.single
        rest = self._objects(functions) if marks.body is None else self._bodies(functions, marks.body)
        self._begin = rules.written(marks.begin)
        self._rest = rules.rule(f"{rest} {rules.written(marks.end)}" if marks.end else rest)

    def whole(self) -> str:
        """All calls, from the first mark to the last."""
        one = self._rules.rule(f"{self._begin} {self._rest}")
        if self._several and not self._marks.listed:
            one = f"{one} ({_WS} {one}){{0,{_MOST_CALLS - 1}}}"
        opening, closing = self._marks.outer
        if not opening:
            return one
        return f"({self._rules.written(opening)} {_WS})? {one} ({_WS} {self._rules.written(closing)})?"

    def among_text(self) -> str:
        """Calls with any text between and around them."""
        rules = self._rules
        many = "*" if self._several and not self._marks.listed else "?"
        if not self._begin.startswith("<["):
            return f"({rules.until(self._marks.begin)} {self._rest}){many} {rules.rule(TEXT)}"
        other = [mark for mark in map(rules.written, self._marks.outer) if mark.startswith("<[")]
        text = rules.rule(TEXT)
        if other:
            text = rules.rule(f"{text} (({' | '.join(other)}) {text})*")
        return f"({text} {self._begin} {self._rest}){many} {text}"

    def _objects(self, functions: Sequence[Mapping[str, Any]]) -> str:
        """Calls in JSON."""
        if self._marks.listed:
            form = _list_of(functions, self._marks, self._several)
        else:
            form = _any_call(functions, self._marks)
        return f"{_WS} {self._rules.document(form)} {_WS if self._marks.end else ''}"

    def _bodies(self, functions: Sequence[Mapping[str, Any]], body: Body) -> str:
        """Calls in other ways."""
        made = [
            self._rules.rule(body(self._rules, plain(str(function["name"])), _parameters(function, "#")))
            for function in functions
        ]
        one = self._rules.rule(" | ".join(made))
        if not self._marks.listed:
            return one
        more = f' (", " {one}){{0,{_MOST_CALLS - 1}}}' if self._several else ""
        return f'"[" {one}{more} "]"'


def _call_of(name: str, marks: CallMarks, arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call."""
    members: dict[str, Any] = {}
    if marks.numbered:
        members[marks.numbered] = {"type": "string", "pattern": "^[0-9]{1,3}$"}
    if marks.keyed:
        members[name] = arguments
    else:
        members.update({marks.name: {"const": name}, marks.arguments: arguments})
    return {
        "type": "object",
        "properties": members,
        "required": list(members),
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
        check_part(part)
        ref = part.get("$ref")
        if isinstance(ref, str) and ref.startswith("#"):
            part["$ref"] = root + ref[1:]
    return schema
