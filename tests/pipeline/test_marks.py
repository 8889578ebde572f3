"""Calls in the model's own marks: the examples of every format fit, and what fits is read as valid calls."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from parser_replies import ONE_CALL, Reply
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from octavo.errors import BadRequest
from octavo.parsers.detect import reply_format
from octavo.parsers.parser import Ask
from octavo.pipeline.grammar import Grammars
from octavo.pipeline.marks import CALL_MARKS, call_marks
from octavo.pipeline.replies import Replies
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import HuggingFaceCodec
from octavo.types.grammar import Grammar
from octavo.types.job import ChatOptions, Job
from octavo.types.sampling import SamplingParams

SCHEMA: Any = {
    "type": "object",
    "$defs": {"unit": {"enum": ["C", "F"]}},
    "properties": {
        "city": {"type": "string"},
        "unit": {"$ref": "#/$defs/unit"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "now": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
SPECIAL = [
    *("<|tool_call|>", "<|action_start|>", "<|plugin|>", "<|action_end|>", "[TOOL_CALLS]", "<|role_sep|>"),
    *("<|tools_prefix|>", "<|tools_suffix|>", "<|START_ACTION|>", "<|END_ACTION|>", "<｜tool▁calls▁begin｜>"),
    *("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<|call|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|channel|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|constrain|>", "<|message|>", "<|end|>"),
    *("<|start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<arg_key>", "</arg_key>", "<arg_value>"),
    *("<start_function_call>", "<end_function_call>", "<escape>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    *("</arg_value>", "<|python_start|>", "<|python_end|>", "<|im_end|>"),
]
ENDS = ("</parameter>", "</arg_value>", "</｜DSML｜parameter>", "</steptml:parameter>", "</tool_call>")


def tool(name: str, schema: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}


TOOLS = (tool("weather", SCHEMA), tool("now"))


@cache
def tokenizer(args: bool) -> Tokenizer:
    """One token for each byte, and many formats' marks as special tokens; `args`: Mistral's newer too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL, *(["[CALL_ID]", "[ARGS]"] if args else [])])
    return Tokenizer(HuggingFaceCodec(backend), {"eos_token": "<|im_end|>"})


@cache
def grammars(args: bool) -> Grammars:
    return Grammars(tokenizer(args), tokenizer(args).vocab_size)


def grammar(name: str, choice: str, tools: Any = TOOLS, parallel: bool = True) -> Grammar | None:
    """What an answer in the format `name` is held to."""
    chat = ChatOptions(
        tools=tools, tool_choice=choice, tool_name="weather", parse=True, parallel_tool_calls=parallel
    )
    job = Job(id="x", messages=(), chat=chat, sampling=SamplingParams())
    return grammars(name == "mistral_args").of_job(job, CALL_MARKS[name])


def fits(name: str, choice: str, text: str, **asked: Any) -> bool:
    found = grammar(name, choice, **asked)
    assert found is not None
    matcher = found.matcher.deep_copy()
    ids = tokenizer(name == "mistral_args").encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


def example(name: str) -> str:
    """A format's own example, as its model ends it."""
    if name == "mistral_args":
        return '[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Paris"}'
    if name == "glm47":
        return "<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
    if name == "mistral":
        return '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]'
    if name == "qwen3_xml":
        return ONE_CALL["qwen3_coder"]
    return ONE_CALL[name].removesuffix("<|call|>")


@pytest.mark.parametrize("name", sorted(CALL_MARKS))
def test_the_examples_of_every_format_fit(name: str) -> None:
    text = example(name)
    for choice in ("required", "named") + (("auto",) if CALL_MARKS[name].optional else ()):
        assert fits(name, choice, text), (choice, text)
        assert not fits(name, choice, text.replace("city", "town")), choice
        assert not fits(name, choice, text.replace("weather", "whether")), choice
    assert not fits(name, "required", "Paris")
    single = f"{text}{text}"
    assert not fits(name, "required", single, parallel=False)


class Walk:
    """Random answers that a grammar allows."""

    def __init__(self, name: str, seed: int) -> None:
        self.tokenizer = tokenizer(name == "mistral_args")
        self.random = random.Random(seed)
        self.ends = [self.tokenizer.encode(end, add_special_tokens=False) for end in ENDS]
        size = self.tokenizer.vocab_size
        bytes_of = [self.tokenizer.token_bytes(i) or b"" for i in range(size)]
        special = self.tokenizer.special_ids
        plain = [
            i in special or (text.isascii() and text.decode().isprintable())
            for i, text in enumerate(bytes_of)
        ]
        near = [
            i in special or text in (*map(bytes, zip(b'<"}])`,:>\n')),) for i, text in enumerate(bytes_of)
        ]
        self.plain, self.near = np.array(plain), np.array(near)

    def answer(self, found: Grammar, steps: int = 600) -> str | None:
        """A whole answer, None where it did not end."""
        matcher, ids = found.matcher.deep_copy(), list[int]()
        for _ in range(steps):
            if matcher.is_accepting() and (matcher.is_stopped() or self.random.random() < 0.3):
                return self.tokenizer.decode(ids)
            end = self.random.choice(self.ends)
            if self.random.random() < 0.15 and matcher.deep_copy().try_consume_tokens(end) == len(end):
                matcher.try_consume_tokens(end)
                ids += end
                continue
            words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            mask = np.unpackbits(words, bitorder="little")[: len(self.plain)].astype(bool)
            near = np.flatnonzero(mask & self.near)
            plain = np.flatnonzero(mask & self.plain)
            if not len(near) and not len(plain):
                plain = np.flatnonzero(mask)
            choices = near if len(near) and (not len(plain) or self.random.random() < 0.55) else plain
            ids.append(int(self.random.choice(choices)))
            matcher.consume_token(ids[-1])
            assert not matcher.is_error()
        return None


@pytest.mark.parametrize("name", sorted(CALL_MARKS))
def test_what_fits_is_read_as_valid_calls(name: str) -> None:
    known = "mistral" if name == "mistral_args" else name
    form = reply_format(known, "none", None)
    found = 0
    for choice in ("required", "auto") if CALL_MARKS[name].optional else ("required",):
        held = grammar(name, choice)
        assert held is not None
        for seed in range(4):
            text = Walk(name, seed).answer(held)
            if text is None:
                continue
            reply = Reply(form, Ask(tools=TOOLS, only_calls=held.marked), [text])
            assert held.marked == (choice == "required")
            assert not held.marked or (reply.calls and not reply.text), text
            for call in reply.calls:
                schema = SCHEMA if call["name"] == "weather" else {"maxProperties": 0}
                jsonschema.validate(json.loads(call["arguments"]), schema)
            found += len(reply.calls)
    assert found


def test_what_tags_cannot_hold_is_plain_json() -> None:
    for part in ({"type": "string", "pattern": "^a+$"}, {"type": "string", "format": "date"}):
        tools = (tool("weather", {"type": "object", "properties": {"a": part}, "required": ["a"]}),)
        found = grammar("glm45", "required", tools)
        assert found is not None
        assert not found.marked
        assert grammar("glm45", "auto", tools) is None
        assert grammar("hermes", "required", tools).marked  # type: ignore[union-attr]
    nameless = (tool("weather", {"type": "object"}),)
    assert fits("qwen3_xml", "required", example("qwen3_xml"), tools=nameless)


def test_mistrals_vocabulary_says_how_it_calls() -> None:
    assert call_marks("mistral", tokenizer(args=False)) is CALL_MARKS["mistral"]
    assert call_marks("mistral", tokenizer(args=True)) is CALL_MARKS["mistral_args"]
    assert call_marks("mimo", tokenizer(args=False)) is CALL_MARKS["hermes"]
    assert call_marks("", None) is None


def test_where_a_thought_is_cut() -> None:
    known = tokenizer(args=False)
    for name, budget, closing in (
        ("openai_gptoss", 5, "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("openai_gptoss", 0, "<|channel|>final<|message|>"),
        ("qwen3", 3, "</think>"),
    ):
        replies = Replies(reply_format("none", name, None), known)
        bound = replies.bound_reasoning(ChatOptions(), "x<|start|>assistant", budget)
        assert bound is not None
        assert known.decode(bound[1].closing, skip_special_tokens=False) == closing
        assert bound[1].tokens == budget
    replies = Replies(reply_format("none", "qwen3", None), known)
    assert replies.bound_reasoning(ChatOptions(), "<think>\n\n</think>\n\n", 3) is None
    for chat, prompt, begun in (
        (ChatOptions(), "x<think>\n", True),
        (None, "x <think> y", True),
        (None, "x", False),
    ):
        bound = replies.bound_reasoning(chat, prompt, 3)
        assert bound is not None
        assert bound[1].starts == (() if begun else (b"<think>",))
    assert Replies(reply_format("hermes", "none", None), known).bound_reasoning(None, "x", 3) is None


def test_braces_inside_braces() -> None:
    stop = {"type": "object", "properties": {"at": {"enum": ["x", "y"]}, "n": {"type": ["integer", "null"]}}}
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "stops": {"type": "array", "items": stop, "minItems": 1}},
        "required": ["stops"],
    }
    tools = (tool("weather", schema),)
    text = '<|tool_call>call:weather{stops:[{at:<|"|>x<|"|>,n:null},{n:3}]}<tool_call|>'
    assert fits("gemma4", "required", text, tools=tools)
    for wrong in (("x", "z"), ("[{at", "[{to"), ("n:3", 'n:<|"|>3<|"|>'), ("stops", "city")):
        assert not fits("gemma4", "required", text.replace(*wrong), tools=tools)
    [call] = Reply(reply_format("gemma4", "none", None), Ask(tools=tools, only_calls=True), [text]).calls
    assert json.loads(call["arguments"]) == {"stops": [{"at": "x", "n": None}, {"n": 3}]}


@pytest.mark.parametrize("name", sorted(CALL_MARKS))
def test_schemas_that_are_none_are_refused(name: str) -> None:
    for kind in ("string", "array"):
        own = {"string": ({"minLength": "a"}, {"maxLength": None}), "array": ({"minItems": "a"},)}
        for odd in ({"enum": 5}, {"anyOf": 5}, {"oneOf": {}}, *own[kind]):
            part = {"type": kind, "items": {"type": "string"}, **odd}
            tools = (tool("weather", {"type": "object", "properties": {"a": part}, "required": ["a"]}),)
            with pytest.raises(BadRequest, match=next(iter(odd))):
                grammar(name, "required", tools)
