"""Running a parser over pieces, and the shared cases where the checkout has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.parsers.parser import Ask, ReplyFormat, ReplyParser

SHARED = (Path(__file__).parents[2] / "../shared").resolve()
CASES = SHARED / "data/tool_calls"
TEMPLATES = SHARED / "data/chat_templates/files"


class Reply:
    """What a parser found in a whole reply."""

    def __init__(self, form: ReplyFormat, ask: Ask, pieces: list[str]) -> None:
        parser = ReplyParser(form, ask)
        self.text = self.reasoning = ""
        self.calls: list[dict[str, str]] = []
        for parsed in [*(parser.push(piece) for piece in pieces), parser.finish()]:
            self.text += parsed.text
            self.reasoning += parsed.reasoning
            for piece in parsed.calls:
                if piece.name:
                    assert piece.index == len(self.calls)
                    self.calls.append({"id": piece.id, "name": piece.name, "arguments": ""})
                self.calls[piece.index]["arguments"] += piece.arguments

    @property
    def all(self) -> tuple[Any, ...]:
        """Everything but made-up ids."""
        return self.text, self.reasoning, [(call["name"], call["arguments"]) for call in self.calls]


def tools(*names: str, **schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Offered tools: names without a schema, and schemas by name."""
    listed = {**{name: {} for name in names}, **schemas}
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in listed.items()
    ]


def cases(name: str) -> list[Any]:
    """The shared cases of a file as test parameters; none where the checkout has none."""
    path = CASES / name
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row, id=f"{i}-{row['format']}") for i, row in enumerate(rows)]
