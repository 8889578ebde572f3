"""The shared cases of tool calls and reasoning; and the same answer however a reply is cut."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from parser_replies import CASES, TEMPLATES, Reply, cases, tools

from octavo.parsers.detect import reply_format
from octavo.parsers.parser import Ask, ReplyFormat

_UNKNOWN = "a function that nobody offered: given as a call, so that the client can answer the model"
_AS_TEXT = "what is no call is text, never dropped"
DIFFERENT = {
    "TestGigaChat3Detector.test_detect_and_parse_arguments_not_dict": _AS_TEXT,
    "TestGigaChat3Detector.test_detect_and_parse_missing_arguments": "no arguments are an empty object",
    "TestGigaChat3Detector.test_detect_and_parse_with_content_and_eos": "the detokenizer keeps </s> out",
    "TestGlm47MoeDetector.test_invalid_tool_call": _UNKNOWN,
    "TestLfm2Detector.test_detect_and_parse_unknown_function": _UNKNOWN,
    "TestGlm4MoeDetector.test_empty_function_name_handling": _AS_TEXT,
    "TestGlm47MoeDetector.test_normal_text_before_tool_call": _AS_TEXT,
    "TestKimiK2Detector.test_invalid_tool_call": "the mark of a section's end says nothing alone",
    "TestMinimaxM3Malformed.test_truncated_no_closing_tags": "the mark around calls says nothing alone",
    "TestPythonicDetector.test_parse_streaming_multiple_tool_calls": "two calls have two indices",
    "TestPythonicDetector.test_parse_streaming_with_python_start_and_end_token": "two calls, two indices",
    "test_reasoning[only_open_tag]": "reasoning that was cut off is reasoning, streamed or not",
    "23": "a code block that the model wrote stays as it is",
    "229": "a message to a tool that nobody offered is shown, as reasoning",
    "230": "a message to a tool that nobody offered is shown, as reasoning",
}
"""Cases whose expected answer is not ours, and why."""
_ESCAPED = "\\n<arg_key>"
"""A case with line feeds and quotes escaped once too often is text to us."""

_UNMARKED = ("pythonic", "llama4_pythonic", "llama3_json", "xlam")


def asked(case: dict[str, Any]) -> Ask:
    """What a request of the case would ask."""
    text = case.get("text") or ""
    offered = [{"type": "function", "function": tool} for tool in case.get("tools", [])]
    options = case.get("options", {})
    llama = case["source"] == "llama.cpp"
    inside = "force" in case["id"] or (llama and "</think>" in text and "<think>" not in text)
    whole = "text" in case and not case.get("streaming") and not case.get("partial")
    return Ask(
        tools=offered or ([{}] if case["format"] in _UNMARKED else tools("any")),
        opened=False if options.get("enable_thinking") is False else inside or None,
        whole=whole,
    )


def format_of(case: dict[str, Any]) -> ReplyFormat:
    """The format that a case is about."""
    name = case["format"]
    if name.startswith("template:"):
        template = (TEMPLATES / f"{name.removeprefix('template:')}.jinja").read_text(encoding="utf-8")
        thinks = case["options"].get("reasoning_format", "none") != "none"
        return reply_format("auto", "auto" if thinks else "none", template)
    if "reasoning_content" in case["expected"]:
        return reply_format("none", {"think_tags": "qwen3"}.get(name, name), None)
    return reply_format(name, "none", None)


def json_or_text(text: str) -> Any:
    """What a JSON text stands for; the text itself when it breaks off."""
    try:
        return json.loads(text)
    except ValueError:
        return text


ALL = [
    case
    for name in ("tool_call_cases.jsonl", "reasoning_cases.jsonl", "chat_parse_cases.jsonl")
    for case in cases(name)
]


@pytest.mark.parametrize("case", ALL)
def test_a_case_whole_and_cut_anywhere(case: dict[str, Any]) -> None:
    form, ask, expected = format_of(case), asked(case), case["expected"]
    text = case["text"] if "text" in case else "".join(case["chunks"])
    reply = Reply(form, ask, [text])
    for at in range(1, len(text)):
        assert Reply(form, ask, [text[:at], text[at:]]).all == reply.all, at
    assert Reply(form, ask, list(text)).all == reply.all
    if case["id"] in DIFFERENT or _ESCAPED in text:
        return
    # White space at the edge of a call or of the reasoning is layout: other engines keep some of it.
    assert reply.text.strip() == (expected["content"] or "").strip()
    assert reply.reasoning.strip() == (expected.get("reasoning_content") or "").strip()
    wanted = expected.get("tool_calls") or []
    assert [call["name"] for call in reply.calls] == [call["name"] for call in wanted]
    for call, want in zip(reply.calls, wanted, strict=True):
        assert json_or_text(call["arguments"]) == json_or_text(want["arguments"])
        assert call["id"] == want.get("id", call["id"])


HARMONY = [
    (
        "test_does_not_drop_if_ongoing_analysis",
        ("", "User asks: “What is the weather in SF?” We need to use lookup_weather tool."),
        [("lookup_weather", '{"location": "San Francisco"}')],
    ),
    (
        "test_preserve_cot",
        ("2 + 2 equals 4.", 'User asks a simple question: "What is 2 + 2?" The answer: 4.'),
        [],
    ),
]


@pytest.mark.parametrize(("name", "texts", "calls"), HARMONY)
def test_the_first_reply_of_a_harmony_conversation(
    name: str, texts: tuple[str, str], calls: list[tuple[str, str]]
) -> None:
    path = CASES / f"harmony/{name}.txt"
    if not path.is_file():
        pytest.skip("../shared is not there")
    _, _, reply_text = path.read_text(encoding="utf-8").partition("<|start|>assistant")
    text = re.split(r"<\|start\|>(?!assistant)", reply_text)[0]
    form = reply_format("openai", "auto", None)
    reply = Reply(form, Ask(tools=tools("lookup_weather")), [text])
    assert reply.all == (*texts, calls)
    for at in range(1, len(text)):
        assert Reply(form, Ask(tools=tools("lookup_weather")), [text[:at], text[at:]]).all == reply.all, at


def test_harmony_with_a_tool_of_nobody() -> None:
    path = CASES / "harmony/test_streamable_parser.txt"
    if not path.is_file():
        pytest.skip("../shared is not there")
    text = path.read_text(encoding="utf-8").split("<|call|>")[0]
    form = reply_format("openai", "auto", None)
    reply = Reply(form, Ask(), [text])
    assert Reply(form, Ask(), list(text)).all == reply.all
    assert (reply.text, reply.calls) == ("", [])
    assert reply.reasoning.startswith('User asks "Who is')
    assert "browse to confirm.\n\n{" in reply.reasoning
