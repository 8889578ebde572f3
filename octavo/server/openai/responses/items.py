"""Items of the Responses API: brought into the shape in which they are kept, and turned into messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from octavo.errors import BadRequest

Item = dict[str, Any]
Find = Callable[[str], Item | None]
"""A kept item by its id."""

_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def kept(value: str | list[Item], find: Find) -> tuple[Item, ...]:
    """What a client sent as `input`, each item with its id and its text in parts.

    `find` resolves references to items of stored responses. Raises BadRequest.
    """
    if isinstance(value, str):
        return (_message({"role": "user", "content": value}, "input"),)
    return tuple(_kept(item, f"input.{i}", find) for i, item in enumerate(value))


def _kept(item: Item, where: str, find: Find) -> Item:
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    if kind == "item_reference":
        name = item.get("id")
        found = find(name) if isinstance(name, str) else None
        if found is None:
            raise BadRequest(
                f"{where} refers to an item that is not stored here.",
                hint="Send the item itself.",
                param=f"{where}.id",
            )
        return found
    makers = {
        "message": _message,
        "function_call": _call,
        "function_call_output": _call_output,
        "reasoning": _reasoning,
    }
    make = makers.get(kind) if isinstance(kind, str) else None
    if make is None:
        shown = kind if isinstance(kind, str) else type(kind).__name__
        raise BadRequest(
            f"{where} is of type {shown[:40]!r}, which is not supported.",
            hint="Messages, function calls, their outputs and reasoning are.",
            param=where,
        )
    return make(item, where)


def _message(item: Item, where: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise BadRequest(f"{where}.role must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
    kind = "output_text" if role == "assistant" else "input_text"
    parts: list[Item] = [{"type": kind, "text": text} for text in _texts(content, f"{where}.content")]
    if role == "assistant":
        for part in parts:
            part.update(annotations=[], logprobs=[])
    return {
        "id": _id(item, "msg"),
        "type": "message",
        "status": "completed",
        "role": role,
        "content": parts,
    }


def _call(item: Item, where: str) -> Item:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise BadRequest(f"{where}.{name} must be a string.", param=f"{where}.{name}")
    given = {name: item[name] for name in ("call_id", "name", "arguments")}
    return {"id": _id(item, "fc"), "type": "function_call", "status": "completed", **given}


def _call_output(item: Item, where: str) -> Item:
    if not isinstance(item.get("call_id"), str):
        raise BadRequest(f"{where}.call_id must be a string.", param=f"{where}.call_id")
    output = item.get("output")
    if not isinstance(output, str):
        texts = _texts(output, f"{where}.output")
        output = [{"type": "input_text", "text": text} for text in texts]
    return {
        "id": _id(item, "fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": item["call_id"],
        "output": output,
    }


def _reasoning(item: Item, where: str) -> Item:
    shaped: Item = {"id": _id(item, "rs"), "type": "reasoning", "summary": [], "content": []}
    for name, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        texts = _texts(item.get(name) or [], f"{where}.{name}")
        shaped[name] = [{"type": kind, "text": text} for text in texts]
    return shaped


def _id(item: Item, prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and 0 < len(given) <= 128 else new_id(prefix)


def new_id(prefix: str) -> str:
    """A fresh id such as ``msg_0123...``."""
    return f"{prefix}_{uuid.uuid4().hex}"


def _texts(content: Any, where: str) -> list[str]:
    """The texts of a content that is a string or a list of parts. Raises BadRequest."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of parts.", param=where)
    return [_text(part, f"{where}.{j}") for j, part in enumerate(content)]


def _text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise BadRequest(f"{where} must be an object with a type, e.g. 'input_text'.", param=where)
    if kind not in _TEXTS:
        raise BadRequest(f"{where} is of type {kind[:40]!r}, but this model takes text only.", param=where)
    text = part.get("refusal") if kind == "refusal" else part.get("text")
    if not isinstance(text, str):
        raise BadRequest(f"{where} has no text.", param=f"{where}.text")
    return text


def messages(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The chat messages that items stand for.

    What an assistant thought, said and called in one turn becomes one message; `instructions` and system
    messages at the beginning become one too, as few templates take several.
    """
    made: list[dict[str, Any]] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    names = {item["call_id"]: item["name"] for item in items if item["type"] == "function_call"}
    for item in items:
        kind = item["type"]
        if kind == "message" and item["role"] != "assistant":
            _add_message(made, item)
        elif kind == "function_call_output":
            said = {"role": "tool", "tool_call_id": item["call_id"], "content": _parts(item["output"])}
            name = names.get(item["call_id"])
            made.append({**said, "name": name} if name else said)
        else:
            _add_to_turn(made, item)
    return made


def _add_message(made: list[dict[str, Any]], item: Item) -> None:
    role = "system" if item["role"] == "developer" else item["role"]
    content = _parts(item["content"])
    if role == "system" and len(made) == 1 and made[0]["role"] == "system":
        made[0] = {"role": "system", "content": f"{made[0]['content']}\n\n{content}"}
    else:
        made.append({"role": role, "content": content})


def _add_to_turn(made: list[dict[str, Any]], item: Item) -> None:
    """An assistant's thought, text or call; what cannot stand after what the turn has begins another."""
    kind = item["type"]
    turn = made[-1] if made and made[-1]["role"] == "assistant" else None
    if turn is None or (kind != "function_call" and (turn["content"] or turn.get("tool_calls"))):
        turn = {"role": "assistant", "content": ""}
        made.append(turn)
    if kind == "reasoning":
        thought = _parts(item["content"]) or _parts(item["summary"])
        turn["reasoning"] = turn["reasoning_content"] = turn.get("reasoning", "") + thought
    elif kind == "message":
        turn["content"] = _parts(item["content"])
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _parts(value: str | list[Item]) -> str:
    return value if isinstance(value, str) else "\n".join(part["text"] for part in value)


def refuse_tool(kind: object, where: str) -> NoReturn:
    """Raise for a tool that is no function."""
    shown = kind if isinstance(kind, str) else type(kind).__name__
    raise BadRequest(
        f"{where} is of type {shown[:40]!r}, which this server does not have.",
        hint="Tools of type 'function' work.",
        param=where,
    )
