"""Content blocks, turned into the chat messages that templates know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.errors import BadRequest

Block = dict[str, Any]
Message = dict[str, Any]

_BILLING = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt with a line that changes with every request. To a model it says
nothing, and it would keep the prefix cache from ever being hit."""


def system_text(system: str | list[Block] | None) -> str:
    """The system prompt as one text. Raises BadRequest."""
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_text(block, f"system.{i}") for i, block in enumerate(system)]
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING))


def messages(turns: Sequence[Message], system: str) -> list[Message]:
    """Chat messages: consecutive turns of one role are one turn, as at Anthropic. Raises BadRequest."""
    if not turns:
        raise BadRequest("messages is empty.", hint="Send at least one message.", param="messages")
    made: list[Message] = [{"role": "system", "content": system}] if system else []
    names: dict[str, str] = {}
    for i, turn in enumerate(turns):
        where = f"messages.{i}"
        role, blocks = turn.get("role"), _blocks(turn.get("content"), f"{where}.content")
        if role == "assistant":
            _assistant(made, blocks, names, where)
        elif role == "user":
            _user(made, blocks, names, where)
        elif role == "system":
            texts = [_text(block, f"{where}.content.{j}") for j, block in enumerate(blocks)]
            _say(made, "system", texts)
        else:
            raise BadRequest(f"{where}.role must be 'user' or 'assistant'.", param=f"{where}.role")
    return made


def _blocks(content: Any, where: str) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of blocks.", param=where)
    return content


def _user(made: list[Message], blocks: list[Any], names: dict[str, str], where: str) -> None:
    """A user's turn: results of tools first, as they belong to the calls before, then what was said."""
    texts = []
    for j, block in enumerate(blocks):
        at = f"{where}.content.{j}"
        if isinstance(block, dict) and block.get("type") == "tool_result":
            made.append(_result(block, names, at))
        else:
            texts.append(_text(block, at))
    if texts:
        _say(made, "user", texts)


def _say(made: list[Message], role: str, texts: list[str]) -> None:
    """Text of a role, joined to the message before when that is the same role's."""
    text = "\n".join(texts)
    if made and made[-1]["role"] == role:
        made[-1] = {"role": role, "content": f"{made[-1]['content']}\n\n{text}"}
    else:
        made.append({"role": role, "content": text})


def _result(block: Block, names: dict[str, str], where: str) -> Message:
    name = block.get("tool_use_id")
    if not isinstance(name, str):
        raise BadRequest(f"{where}.tool_use_id must be a string.", param=f"{where}.tool_use_id")
    if name not in names:
        raise BadRequest(
            f"{where} is the result of {name[:60]!r}, which no tool_use before it has as its id.",
            param=f"{where}.tool_use_id",
        )
    blocks = _blocks(block.get("content") or "", f"{where}.content")
    texts = [_text(part, f"{where}.content.{k}") for k, part in enumerate(blocks)]
    return {"role": "tool", "tool_call_id": name, "name": names[name], "content": "\n".join(texts)}


def _assistant(made: list[Message], blocks: list[Any], names: dict[str, str], where: str) -> None:
    """What the assistant thought, said and called, as one message."""
    thoughts, texts, calls = [], [], []
    for j, block in enumerate(blocks):
        at = f"{where}.content.{j}"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking":
            thoughts.append(_field(block, "thinking", at))
        elif kind == "tool_use":
            calls.append(_call(block, names, at))
        elif kind != "redacted_thinking":
            texts.append(_text(block, at))
    turn: Message = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        turn["reasoning"] = turn["reasoning_content"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    last = made[-1] if made else None
    if last is not None and last["role"] == "assistant" and "tool_calls" not in last and not thoughts:
        turn = {**last, **turn, "content": f"{last['content']}\n{turn['content']}".strip("\n")}
        made[-1] = turn
    else:
        made.append(turn)


def _call(block: Block, names: dict[str, str], where: str) -> dict[str, Any]:
    name = _field(block, "name", where)
    call_id = _field(block, "id", where)
    given = block.get("input")
    if not isinstance(given, dict):
        raise BadRequest(f"{where}.input must be an object.", param=f"{where}.input")
    names[call_id] = name
    arguments = msgspec.json.encode(given).decode()
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _field(block: Block, name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{where}.{name} must be a string.", param=f"{where}.{name}")
    return value


def _text(block: Any, where: str) -> str:
    """The text of a block of text, or of a document or search result that is text. Raises BadRequest."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(f"{where} must be an object with a type, e.g. 'text'.", param=where)
    if kind == "text":
        return _field(block, "text", where)
    if kind == "search_result":
        return _titled(block, block.get("content"), f"{where}.content")
    source = block.get("source")
    source_kind = source.get("type") if kind == "document" and isinstance(source, dict) else None
    if source_kind == "text":
        return _titled(block, source.get("data"), f"{where}.source.data")
    if source_kind == "content":
        return _titled(block, source.get("content"), f"{where}.source.content")
    raise BadRequest(f"{where} is of type {kind[:40]!r}, but this model takes text only.", param=where)


def _titled(block: Block, content: Any, where: str) -> str:
    """A document's text below its title."""
    texts = [_text(part, f"{where}.{k}") for k, part in enumerate(_blocks(content, where))]
    title = block.get("title")
    return "\n".join([title, *texts] if isinstance(title, str) and title else texts)
