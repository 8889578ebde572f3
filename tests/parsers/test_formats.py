"""Formats one by one, broken calls, detection, and texts that mean nothing."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from parser_fuzz import OFFERED, fuzz, repeated
from parser_replies import ONE_CALL, TEMPLATES, Reply, tools

from octavo.errors import ConfigError
from octavo.parsers.detect import reply_format, thinking_state
from octavo.parsers.formats import TOOL_FORMATS
from octavo.parsers.parser import Ask, ReplyFormat

CALL_JSON = '{"name": "weather", "arguments": {"city": "Paris"}}'


def form_of(name: str) -> ReplyFormat:
    return reply_format(name, "none", None)


def everywhere(form: ReplyFormat, ask: Ask, text: str, cut: bool = False) -> Reply:
    """The reply to a text, which is the same in whatever pieces it comes."""
    reply = Reply(form, ask, [text], cut)
    assert Reply(form, ask, list(text), cut).all == reply.all
    for at in range(1, len(text)):
        assert Reply(form, ask, [text[:at], text[at:]], cut).all == reply.all, at
    return reply


def test_every_format_has_an_example() -> None:
    assert set(TOOL_FORMATS) <= set(ONE_CALL)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ONE_CALL)
def test_a_call_in_every_format(name: str, whole: bool) -> None:
    reply = everywhere(form_of(name), Ask(tools=OFFERED, whole=whole), ONE_CALL[name])
    assert (reply.text, reply.reasoning) == ("", "")
    (call,) = reply.calls
    assert call["name"] == "weather"
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    assert call["id"]


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name != "openai"])
def test_without_tools_a_call_is_text(name: str) -> None:
    reply = everywhere(form_of(name), Ask(), ONE_CALL[name])
    assert reply.calls == []
    assert reply.text == ONE_CALL[name]


@pytest.mark.parametrize("name", ["hermes", "mistral", "jamba", "granite", "deepseek_v31"])
def test_a_call_that_the_model_broke_off_is_text_when_whole_and_arguments_when_streamed(name: str) -> None:
    cut = ONE_CALL[name][: ONE_CALL[name].index("Paris") + 3]
    whole = everywhere(form_of(name), Ask(tools=OFFERED, whole=True), cut)
    assert whole.calls == []
    assert whole.text.endswith('"Par')
    if name != "mistral":  # its id may come last, so that nothing can be given before
        streamed = everywhere(form_of(name), Ask(tools=OFFERED), cut)
        assert streamed.text == ""
        assert streamed.calls[0]["arguments"] == '{"city": "Par'


@pytest.mark.parametrize("name", ONE_CALL)
def test_a_call_that_was_cut_is_the_same_whole_and_streamed(name: str) -> None:
    """What max_tokens leaves: text up to its arguments, then a call with as much of them as there is."""
    form, text, seen = form_of(name), ONE_CALL[name], []
    for end in range(1, len(text), 3):
        whole, streamed = (
            everywhere(form, Ask(tools=OFFERED, whole=whole), text[:end], cut=True) for whole in (True, False)
        )
        assert whole.all == streamed.all, end
        assert bool(whole.calls) >= bool(seen)
        for call in whole.calls:
            assert call["name"] == "weather"
            seen.append(re.split(r"\\n|[<\]]", call["arguments"])[0])  # half a closing tag
            assert '{"city": "Paris"}'.startswith(seen[-1])
            assert whole.text == ""
    assert seen == sorted(seen, key=len)
    assert seen


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "not json",
        '{"name": "weather", "arguments": }',
        '{"name": "weather", "arguments": {city: 1}}',
        '{"arguments": {"city": "Paris"}}',
        '{"name": "", "arguments": {}}',
        '{"name": "two words", "arguments": {}}',
        '{"name": "weather", "arguments": "text"}',
        "[1]",
    ],
)
def test_a_broken_call_comes_back_as_text(inner: str) -> None:
    text = f"Let me see.\n<tool_call>{inner}</tool_call>"
    for whole in (False, True):
        reply = everywhere(form_of("hermes"), Ask(tools=OFFERED, whole=whole), text)
        assert reply.calls == []
        assert reply.text == text


def test_a_good_call_after_a_broken_one() -> None:
    text = "<tool_call>oh</tool_call>" + ONE_CALL["hermes"] + "<tool_call>" + ONE_CALL["hermes"] + "Done."
    reply = everywhere(form_of("hermes"), Ask(tools=OFFERED), text)
    assert [call["name"] for call in reply.calls] == ["weather", "weather"]
    assert reply.text == "<tool_call>oh</tool_call><tool_call>Done."


def test_slips_of_json_are_mended() -> None:
    arguments = '{"city": "a\nb\\d\\\'c", "on": True, "none": None}'
    text = f'<tool_call>{{"name": "add", "arguments": {arguments}}}}}</tool_call>'
    (call,) = everywhere(form_of("hermes"), Ask(tools=OFFERED), text).calls
    assert json.loads(call["arguments"]) == {"city": "a\nb\\d'c", "on": True, "none": None}


def test_arguments_before_the_name_in_a_string_or_missing() -> None:
    text = (
        '<tool_call>{"arguments": {"city": "Rome"}, "name": "weather"}</tool_call>'
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>'
        '<tool_call>{"name": "add"}</tool_call><tool_call>{"name": "add", "arguments": null}</tool_call>'
    )
    calls = everywhere(form_of("hermes"), Ask(tools=OFFERED), text).calls
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Rome"}, {"city": "Oslo"}, {}, {}]


def test_only_the_first_call_when_one_is_wanted() -> None:
    text = ONE_CALL["hermes"] * 3 + "Done."
    reply = everywhere(form_of("hermes"), Ask(tools=OFFERED, one_call=True), text)
    assert len(reply.calls) == 1
    assert reply.text == "Done."


def test_unmarked_formats_take_offered_functions_only() -> None:
    for name, text in (
        ("pythonic", "See [link](http://a) and [other(x=1)]."),
        ("llama3_json", '{"name": "other", "parameters": {}}'),
        ("llama3_json", '{"name": "weather"}'),
        ("phi4_mini_json", "functools is a module"),
        ("xlam", '```json\n[{"name": "Ada"}]\n```'),
    ):
        reply = everywhere(form_of(name), Ask(tools=OFFERED), text)
        assert (reply.text, reply.calls) == (text, [])


def test_types_come_from_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "i": {"type": "integer"},
            "n": {"type": ["number", "null"]},
            "b": {"type": "boolean"},
            "o": {"anyOf": [{"type": "object"}, {"type": "null"}]},
            "r": {"$ref": "#/$defs/list"},
            "e": {"enum": ["1", "2"]},
        },
        "$defs": {"list": {"type": "array"}},
    }
    values = {
        "s": "5",
        "i": "5",
        "n": "null",
        "b": "True",
        "o": "{'a': (1,)}",
        "r": "[1]",
        "e": "1",
        "x": "7",
    }
    text = "<function=f>" + "".join(f"<parameter={k}>\n{v}\n</parameter>" for k, v in values.items())
    (call,) = everywhere(form_of("qwen3_coder"), Ask(tools=tools(f=schema)), text + "</function>").calls
    assert json.loads(call["arguments"]) == {
        "s": "5",
        "i": 5,
        "n": None,
        "b": True,
        "o": {"a": [1]},
        "r": [1],
        "e": "1",
        "x": 7,
    }


def test_a_schema_that_runs_in_circles_costs_nothing() -> None:
    circle = {"anyOf": [{"$ref": f"#/properties/{name}"} for name in "ab"] * 50}
    schema = {"type": "object", "properties": {"a": circle, "b": circle}}
    text = "<function=f><parameter=a>5</parameter></function>"
    (call,) = Reply(form_of("qwen3_coder"), Ask(tools=tools(f=schema)), [text]).calls
    assert call["arguments"] == '{"a": 5}'


def test_gemmas_values() -> None:
    values = 's:<|"|>a "b", {c}<|"|>,n:-1.5,t:true,z:null,l:[1,<|"|>x<|"|>,[]],o:{k:2,"q":{}},w:bare word'
    text = f"<|tool_call>call:add{{{values}}}<tool_call|><|tool_call>call:add{{}}<tool_call|>"
    calls = everywhere(form_of("gemma4"), Ask(tools=OFFERED), text).calls
    assert json.loads(calls[0]["arguments"]) == {
        "s": 'a "b", {c}',
        "n": -1.5,
        "t": True,
        "z": None,
        "l": [1, "x", []],
        "o": {"k": 2, "q": {}},
        "w": "bare word",
    }
    assert calls[1]["arguments"] == "{}"


def test_a_string_argument_is_given_as_it_comes() -> None:
    from octavo.parsers.parser import ReplyParser

    parser = ReplyParser(form_of("qwen3_coder"), Ask(tools=OFFERED))
    parser.push("<function=weather>\n<parameter=city>\n")
    (piece,) = parser.push('New "York').calls
    assert piece.arguments == 'New \\"York'


def test_reasoning_that_the_prompt_opened_or_closed() -> None:
    form = reply_format("hermes", "qwen3", None)
    assert thinking_state(form, "<|im_start|>assistant\n<think>\n") is True
    assert thinking_state(form, "<|im_start|>assistant\n<think>\n\n</think>\n\n") is False
    assert thinking_state(form, "<|im_start|>assistant\n") is None
    assert thinking_state(form, "assistant\n<think>I was", continues=True) is True
    assert thinking_state(form, "assistant\n<think>x</think>And so", continues=True) is False
    text = "Hm.\n</think>\n\n" + ONE_CALL["hermes"]
    reply = everywhere(form, Ask(tools=OFFERED, opened=True), text)
    assert (reply.text, reply.reasoning, len(reply.calls)) == ("", "Hm.", 1)
    closed = everywhere(reply_format("none", "deepseek_r1", None), Ask(opened=False), "Yes.")
    assert (closed.text, closed.reasoning) == ("Yes.", "")


def test_a_call_inside_the_reasoning_is_none() -> None:
    form = reply_format("hermes", "qwen3", None)
    text = f"<think>I could say {ONE_CALL['hermes']}</think>No."
    reply = everywhere(form, Ask(tools=OFFERED), text)
    assert (reply.text, reply.calls) == ("No.", [])


def test_harmony() -> None:
    form = reply_format("openai", "auto", None)
    text = (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I look it up.<|end|><|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
        '{"city": "Paris"}<|call|>'
    )
    reply = everywhere(form, Ask(tools=OFFERED), text)
    assert (reply.text, reply.reasoning) == ("I look it up.", "Think.")
    assert reply.calls[0]["arguments"] == '{"city": "Paris"}'
    assert everywhere(form, Ask(), "Just text.").text == "Just text."
    two = "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>final<|message|>Then."
    assert everywhere(form, Ask(), two).text == "First.\n\nThen."


def test_forced_calls() -> None:
    form = reply_format("hermes", "qwen3", None)
    one = everywhere(form, Ask(tools=OFFERED, forced="weather"), '<think>x</think>{"city": "Paris"}')
    assert [(call["name"], call["arguments"]) for call in one.calls] == [("weather", '{"city": "Paris"}')]
    many = '[{"name": "weather", "parameters": {"city": "Rome"}}, {"name": "add", "parameters": {}}]'
    reply = everywhere(form, Ask(tools=OFFERED, forced=""), many)
    assert [call["name"] for call in reply.calls] == ["weather", "add"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_forced_call_that_is_cut_gives_what_there_is(whole: bool) -> None:
    form = reply_format("hermes", "qwen3", None)
    for forced, text in (("weather", '{"city": "Paris"}'), ("", f"[{CALL_JSON}]")):
        for end in range(len(text)):
            reply = everywhere(form, Ask(tools=OFFERED, forced=forced, whole=whole), text[:end])
            assert reply.text == ""
            assert '{"city": "Paris"}'.startswith("".join(call["arguments"] for call in reply.calls))
            known = not forced and '"weather"' in text[:end]
            assert [call["name"] for call in reply.calls] == (
                ["weather"] if known or (forced and end) else []
            )
    assert everywhere(form, Ask(tools=OFFERED, forced="", whole=whole), "Hello").text == "Hello"


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [name for name in ONE_CALL if name != "openai"])
def test_a_call_that_must_be_is_no_text_wherever_it_is_cut(name: str, whole: bool) -> None:
    ask = Ask(tools=OFFERED, only_calls=True, whole=whole)
    for end in range(int(whole), len(ONE_CALL[name]), 2):
        reply = Reply(form_of(name), ask, list(ONE_CALL[name][:end]))
        assert reply.all == Reply(form_of(name), ask, [ONE_CALL[name][:end]]).all
        assert reply.text == "", ONE_CALL[name][:end]
        given = re.split(r"\\n|[\]<]", "".join(call["arguments"] for call in reply.calls))[0]
        assert '{"city": "Paris"}'.startswith(given)  # what follows is the beginning of a closing tag
    assert len(everywhere(form_of(name), ask, ONE_CALL[name]).calls) == 1
    assert everywhere(form_of(name), ask, "Hello").text == "Hello"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("lc-Qwen-Qwen3-0.6B", ("hermes", "qwen3")),
        ("lc-Qwen3-Coder", ("qwen3_xml", "")),
        ("lc-openai-gpt-oss-120b", ("openai", "openai_gptoss")),
        ("lc-mistralai-Mistral-Nemo-Instruct-2407", ("mistral", "")),
        ("lc-deepseek-ai-DeepSeek-V3.1", ("deepseek_v31", "deepseek_v3")),
        ("lc-deepseek-ai-DeepSeek-V3.2", ("deepseek_v32", "deepseek_v3")),
        ("lc-GLM-4.6", ("glm45", "glm45")),
        ("lc-Kimi-K2-Thinking", ("kimi_k2", "kimi_k2")),
        ("lc-ibm-granite-granite-3.3-2B-Instruct", ("granite", "granite")),
        ("vllm-tool_chat_template_llama3.1_json", ("llama3_json", "")),
        ("vllm-tool_chat_template_llama3.2_pythonic", ("pythonic", "")),
        ("vllm-tool_chat_template_phi4_mini", ("phi4_mini_json", "")),
        ("vllm-tool_chat_template_xlam_qwen", ("xlam", "")),
        ("lc-microsoft-Phi-3.5-mini-instruct", ("", "")),
    ],
)
def test_formats_are_read_off_the_template(template: str, wanted: tuple[str, str]) -> None:
    path = TEMPLATES / f"{template}.jinja"
    if not path.is_file():
        pytest.skip("../shared is not there")
    form = reply_format("auto", "auto", path.read_text(encoding="utf-8"))
    assert (form.tool_name, form.reasoning_name) == wanted


def test_names_of_formats() -> None:
    assert reply_format("none", "none", "<tool_call> </think>") == ReplyFormat()
    assert reply_format("inkling", "auto", "<tool_call> tools").tool_name == "hermes"
    with pytest.raises(ConfigError, match="hermes"):
        reply_format("hermse", "auto", None)


def test_random_texts_raise_nothing_and_do_not_depend_on_cuts() -> None:
    fuzz(4_000, 5)


@pytest.mark.parametrize("name", [*TOOL_FORMATS, "openai"])
def test_time_is_linear(name: str) -> None:
    """Sixteen times the text takes about sixteen times as long; squared, it would be 256."""
    form = form_of(name)

    def seconds(begin: str, unit: str, whole: bool, size: int) -> float:
        text = begin + unit * (size // len(unit))
        pieces = [text] if whole else [text[i : i + 4] for i in range(0, len(text), 4)]
        start = time.thread_time()
        Reply(form, Ask(tools=OFFERED, whole=whole), pieces)
        return time.thread_time() - start

    for begin, unit in random.Random(name).sample(list(repeated(name)), 5):
        for whole in (True, False):
            small = min(seconds(begin, unit, whole, 600) for _ in range(3))
            limit = 64 * max(small, 0.0002)
            assert any(seconds(begin, unit, whole, 9600) < limit for _ in range(5)), (begin, unit, whole)


@pytest.mark.parametrize(
    ("name", "begin", "unit", "step"),
    [
        ("deepseek_v32", "", '<｜DSML｜invoke name="', 1 << 20),
        ("minimax_m2", "", "<minimax:tool_call>\n", 1 << 20),
        ("hermes", ONE_CALL["hermes"], " ", 8),
    ],
)
def test_time_is_linear_in_long_texts(name: str, begin: str, unit: str, step: int) -> None:
    """Searching and copying are so fast that only long texts show when they are done too often."""

    def seconds(size: int) -> float:
        text = begin + unit * (size // len(unit))
        start = time.thread_time()
        Reply(form_of(name), Ask(tools=OFFERED), [text[i : i + step] for i in range(0, len(text), step)])
        return time.thread_time() - start

    limit = 64 * max(min(seconds(60_000) for _ in range(3)), 0.002)
    assert any(seconds(960_000) < limit for _ in range(5))
