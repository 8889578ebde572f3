"""Running a parser over pieces, and the shared cases where the checkout has them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from octavo.parsers import parser as machine
from octavo.parsers.parser import Ask, ReplyFormat, ReplyParser

SHARED = (Path(__file__).parents[2] / "../shared").resolve()
CASES = SHARED / "data/tool_calls"
TEMPLATES = SHARED / "data/chat_templates/files"

ONE_CALL = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "longcat": '<longcat_tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</longcat_tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
    "</function>\n</tool_call>",
    "qwen3_xml": "<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
    "seed_oss": "<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n"
    "</function>\n</seed:tool_call>",
    "glm45": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    "llama3_json": '{"name": "weather", "parameters": {"city": "Paris"}}',
    "pythonic": '[weather(city="Paris")]',
    "llama4_pythonic": '<|python_start|>[weather(city="Paris")]<|python_end|>',
    "lfm2": '<|tool_call_start|>[weather(city="Paris")]<|tool_call_end|>',
    "olmo3": '<function_calls>\nweather(city="Paris")\n</function_calls>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter '
    'name="city" string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]',
    "granite-20b-fc": '<function_call> {"name": "weather", "arguments": {"city": "Paris"}}',
    "internlm": "<|action_start|><|plugin|>\n"
    '{"name": "weather", "parameters": {"city": "Paris"}}<|action_end|>',
    "jamba": '<tool_calls>[{"name": "weather", "arguments": {"city": "Paris"}}]</tool_calls>',
    "phi4_mini_json": 'functools[{"name": "weather", "arguments": {"city": "Paris"}}]',
    "xlam": '[{"name": "weather", "arguments": {"city": "Paris"}}]',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
    "</invoke>\n</minimax:tool_call>",
    "minimax_m3": ']<]minimax[>[<tool_call>]<]minimax[>[<invoke name="weather">]<]minimax[>[<city>Paris'
    "]<]minimax[>[</city>]<]minimax[>[</invoke>]<]minimax[>[</tool_call>",
    "step3": "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
    '<steptml:invoke name="weather"><steptml:parameter name="city">Paris</steptml:parameter></steptml:invoke>'
    "<｜tool_call_end｜><｜tool_calls_end｜>",
    "functiongemma": "<start_function_call>call:weather{city:<escape>Paris<escape>}<end_function_call>",
    "gemma4": '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>',
    "gigachat3": 'function call<|role_sep|>\n{"name": "weather", "arguments": {"city": "Paris"}}',
    "apertus": '<|tools_prefix|>[{"weather": {"city": "Paris"}}]<|tools_suffix|>',
    "cohere_command3": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": '
    '{"city": "Paris"}}]<|END_ACTION|>',
    "openai": "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Paris"}<|call|>',
}
"""A call of weather(city="Paris") in every format."""


def loud() -> AbstractContextManager[Any]:
    """A parser's own mistake, which costs a reply its form and is only logged, is an AssertionError here."""
    return mock.patch.object(machine.log, "exception", side_effect=AssertionError("a parser failed"))


class Reply:
    """What a parser found in a whole reply."""

    def __init__(self, form: ReplyFormat, ask: Ask, pieces: list[str], cut: bool = False) -> None:
        parser = ReplyParser(form, ask)
        parts = [*(parser.push(piece) for piece in pieces), parser.finish(cut=cut)]
        self.text = "".join(parsed.text for parsed in parts)
        self.reasoning = "".join(parsed.reasoning for parsed in parts)
        self.calls: list[dict[str, str]] = []
        arguments: list[list[str]] = []
        for piece in (piece for parsed in parts for piece in parsed.calls):
            if piece.name:
                assert piece.index == len(self.calls)
                self.calls.append({"id": piece.id, "name": piece.name})
                arguments.append([])
            arguments[piece.index].append(piece.arguments)
        for call, texts in zip(self.calls, arguments, strict=True):
            call["arguments"] = "".join(texts)

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
