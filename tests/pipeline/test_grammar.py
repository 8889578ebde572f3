"""Forms of answers: what is refused and why, and that every walk through one gives what was asked."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from octavo.errors import BadRequest
from octavo.pipeline.grammar import Grammars
from octavo.pipeline.tokenizer import Tokenizer
from octavo.runner.masks import Masks
from octavo.types.grammar import Budget
from octavo.types.structured import StructuredOutputsParams as Form


def made(tokenizer: Tokenizer, **form: Any) -> Any:
    return Grammars(tokenizer, tokenizer.vocab_size).of(Form(**form))


def walk(
    grammar: Any, seed: int, *, ends: tuple[int, ...] = (), steps: int = 400, leave: float = 0.5
) -> tuple[bytes, bool]:
    """A random answer under a grammar, and whether it came to its end."""
    rng = random.Random(seed)
    masks = Masks(1)
    masks.add(0, grammar, ends, ())
    text = b""
    for _ in range(steps):
        places, bits = masks.bits([0])
        allowed = np.flatnonzero(np.unpackbits(bits[places[0]].view(np.uint8), bitorder="little"))
        stops = [i for i in allowed.tolist() if i in ends]
        others = [i for i in allowed.tolist() if i not in ends]
        if stops and (not others or rng.random() < leave):
            return text, True
        token = rng.choice(others)
        text += grammar.vocabulary.bytes_of(token)
        complete, errors = masks.push([0], [token])
        assert not errors
        if complete:
            return text, True
    return text, False


@pytest.fixture(params=["byte_tokenizer", "piece_tokenizer", "word_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_choices(tokenizer: Tokenizer, seed: int) -> None:
    words = ["the sky", "the sky is blue", "light"]
    if not tokenizer.vocab_size > 100:  # its words bring their spaces along
        words = [f" {word}" for word in words]
    text, ended = walk(made(tokenizer, choice=words), seed, ends=(tokenizer.eos_id or 1,))
    assert ended
    assert text.decode() in words


@pytest.mark.parametrize("pattern", [r"\d{3}-[a-c]+!", r"^(yes|no)$", r"(天空|é+)x", r"[^a]{1,5}"])
def test_a_regex_matches_the_whole_answer(byte_tokenizer: Tokenizer, pattern: str) -> None:
    for seed in range(5):
        text, ended = walk(made(byte_tokenizer, regex=pattern), seed, ends=(byte_tokenizer.eos_id or 0,))
        assert ended
        assert re.fullmatch(pattern, text.decode())


def test_strings_of_json_hold_no_raw_control_characters(byte_tokenizer: Tokenizer) -> None:
    for seed in range(10):
        grammar = made(byte_tokenizer, json={"type": "string", "minLength": 5, "maxLength": 20})
        text, ended = walk(grammar, seed)
        assert ended
        assert 5 <= len(json.loads(text)) <= 20  # strict: control characters are an error


@pytest.mark.parametrize(
    ("form", "param", "words"),
    [
        ({"regex": "(a"}, "regex", "unclosed group"),
        ({"regex": "(?=a)b"}, "regex", "look-around"),
        ({"grammar": "root := x"}, "grammar", "cannot be read"),
        ({"grammar": 'start: "a" b'}, "grammar", 'unknown name: "b"'),
        ({"json": {"type": "array", "uniqueItems": True}}, "json", "uniqueItems"),
        ({"json": {"not": {"type": "string"}}}, "json", "not"),
        ({"json": {"type": "string", "format": "shoe-size"}}, "json", "shoe-size"),
        ({"json": {"$ref": "http://localhost/schema"}}, "json", "http://localhost/schema"),
        ({"json": "{"}, "json", "no JSON"),
        ({"json": "[1]"}, "json", "a list"),
        ({"json": {"format": "date", "allOf": 5}}, "json", "allOf in a schema is a list, not a number"),
        ({"json": {"items": {"enum": None}}}, "json", "enum in a schema is a list, not null"),
        ({"json": {"oneOf": [{"const": 1}], "anyOf": [], "allOf": {}}}, "json", "allOf in a schema"),
        (
            {"json": {"type": "object", "not": {}, "x-guidance": {"lenient": True}}},
            "json",
            '["not"]',
        ),
        ({"structural_tag": {"a": 1}}, "structural_tag", "format"),
        ({"structural_tag": {"format": {"type": "magic"}}}, "structural_tag", "magic"),
        ({"structural_tag": "{}}"}, "structural_tag", "no JSON"),
    ],
)
def test_refusals_name_the_reason(byte_tokenizer: Tokenizer, form: Any, param: str, words: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as caught:
        made(byte_tokenizer, **form)
    assert caught.value.param == f"structured_outputs.{param}"


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "large": {"json": {"enum": ["x" * 1000] * 1000}},
    "properties": {"json": {"properties": {f"p{i}": {} for i in range(10_000)}}},
    "deep": {"json": nested(65)},
    "very deep": {"json": nested(100_000)},
    "deep text": {"json": "[" * 100_000},
    "long regex": {"regex": "a|" * 400_000 + "a"},
    "long grammar": {"grammar": "root ::= " + '"a" | ' * 200_000 + '"a"'},
    "choices": {"choice": [str(i) for i in range(20_000)]},
    "deep groups": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "deep rules": {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused_in_bounded_time(byte_tokenizer: Tokenizer, name: str) -> None:
    started = time.perf_counter()
    with pytest.raises(BadRequest) as caught:
        made(byte_tokenizer, **HOSTILE[name])
    assert time.perf_counter() - started < 5
    assert len(str(caught.value)) < 500


def test_a_regex_of_many_states_is_bounded(byte_tokenizer: Tokenizer) -> None:
    started = time.perf_counter()
    with contextlib.suppress(BadRequest, AssertionError):  # the row may end with an error of its own
        walk(made(byte_tokenizer, regex="(a?){500}a{500}"), 0, steps=30)
    assert time.perf_counter() - started < 5


def test_reasoning_comes_before_the_form(byte_tokenizer: Tokenizer) -> None:
    """Its end may lie inside a token, and nothing may end the answer before it."""
    grammars = Grammars(byte_tokenizer, byte_tokenizer.vocab_size)
    end = byte_tokenizer.eos_id or 0
    grammar = msgspec.structs.replace(grammars.of(Form(choice=["yes", "no"])), after=(b"</think>",))
    masks = Masks(1)
    masks.add(0, grammar, (end,), ())
    line = byte_tokenizer.encode("\n", add_special_tokens=False)[0]
    for text, free in (("I say no</thi", True), ("nk>", False), ("\n", False), ("n", False)):
        for token in byte_tokenizer.encode(text, add_special_tokens=False):
            assert allowed(masks, token)
            assert not allowed(masks, end)
            masks.push([0], [token])
        assert allowed(masks, line) == (free or text == "nk>"), "a line break, once"
        assert free == allowed(masks, byte_tokenizer.encode("x", add_special_tokens=False)[0])
    assert masks.push([0], byte_tokenizer.encode("o", add_special_tokens=False)) == ({0}, {})


def test_reasoning_may_be_opened_or_left_out(byte_tokenizer: Tokenizer) -> None:
    think = byte_tokenizer.token_id("<think>")
    assert think is not None
    form = Grammars(byte_tokenizer, byte_tokenizer.vocab_size).of(Form(choice=["yes"]))
    grammar = msgspec.structs.replace(form, after=(b"!",), opens=(think,))
    [yes, free] = (byte_tokenizer.encode(text, add_special_tokens=False)[0] for text in ("yes", "x"))
    masks = Masks(2)
    for row, first in enumerate((think, yes)):
        masks.add(row, grammar, (), ())
        assert allowed(masks, think, row)
        assert allowed(masks, yes, row)
        assert not allowed(masks, free, row)
        masks.push([row], [first])
        assert allowed(masks, free, row) == (first == think)
        assert allowed(masks, think, row) == (first == think)


def only(masks: Masks) -> set[int] | None:
    """What row 0 may draw now; None: anything."""
    [place], bits = masks.bits([0])
    if place < 0:
        return None
    return set(np.flatnonzero(np.unpackbits(bits[place].view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize("budget", [0, 1, 4])
@pytest.mark.parametrize("opened", [True, False])
def test_reasoning_ends_when_its_budget_is_spent(
    byte_tokenizer: Tokenizer, budget: int, opened: bool
) -> None:
    grammars = Grammars(byte_tokenizer, byte_tokenizer.vocab_size)
    think = byte_tokenizer.token_id("<think>")
    assert think is not None
    closing = tuple(byte_tokenizer.encode("</think>", add_special_tokens=False))
    assert len(closing) > 1
    bound = Budget(tokens=budget, closing=closing, starts=() if opened else (b"<think>",))
    grammar = msgspec.structs.replace(grammars.free(), after=(b"</think>",), budget=bound)
    thought = byte_tokenizer.encode("x" * budget, add_special_tokens=False)[:budget]
    said = [*([] if opened else [think]), *thought, *closing]
    forced = {len(said) - len(closing) + i: {token} for i, token in enumerate(closing)}
    for resumed in (False, True):
        masks = Masks(1)
        masks.add(0, grammar, (), ())
        for at, token in enumerate([*said, *thought, *thought]):
            if resumed:
                masks.add(0, grammar, (), ([*said, *thought, *thought])[:at])
            assert only(masks) == forced.get(at)
            assert masks.push([0], [token]) == (set(), {})
        assert only(masks) is None


def test_reasoning_that_ends_in_time_is_left_alone(byte_tokenizer: Tokenizer) -> None:
    grammars = Grammars(byte_tokenizer, byte_tokenizer.vocab_size)
    bound = Budget(tokens=30, closing=(3,), starts=(b"<think>",))
    grammar = msgspec.structs.replace(grammars.free(), after=(b"</think>",), budget=bound)
    for text in ("<think>no</think>" + "x" * 60, "Plain text " * 9, " \n" * 90):
        masks = Masks(1)
        masks.add(0, grammar, (), ())
        for token in byte_tokenizer.encode(text, add_special_tokens=False):
            assert only(masks) is None
            masks.push([0], [token])


def test_a_form_follows_a_budget(byte_tokenizer: Tokenizer) -> None:
    form = Grammars(byte_tokenizer, byte_tokenizer.vocab_size).of(Form(choice=["yes"]))
    closing = tuple(byte_tokenizer.encode("</think>", add_special_tokens=False))
    grammar = msgspec.structs.replace(form, after=(b"</think>",), budget=Budget(tokens=2, closing=closing))
    masks = Masks(1)
    masks.add(0, grammar, (), ())
    for token in (*byte_tokenizer.encode("xy", add_special_tokens=False)[:2], *closing):
        masks.push([0], [token])
    [first] = byte_tokenizer.encode("y", add_special_tokens=False)
    assert first in (only(masks) or ())
    assert closing[0] not in (only(masks) or ())


def test_a_call_may_end_the_reasoning(byte_tokenizer: Tokenizer) -> None:
    """Its mark is the first token of the answer."""
    mark = byte_tokenizer.token_id("<|im_start|>")
    assert mark is not None
    grammars = Grammars(byte_tokenizer, byte_tokenizer.vocab_size)
    form = grammars.compile(f'{{"grammars": [{{"lark_grammar": "start: <[{mark}]> \\"yes\\""}}]}}')
    grammar = msgspec.structs.replace(form, after=(b"</think>",), leaves=(mark,))
    masks = Masks(1)
    masks.add(0, grammar, (), ())
    for token in (*byte_tokenizer.encode("Hm", add_special_tokens=False), mark):
        assert allowed(masks, token)
        assert masks.push([0], [token]) == (set(), {})
    [yes, no] = (byte_tokenizer.encode(text, add_special_tokens=False)[0] for text in "yn")
    assert allowed(masks, yes)
    assert not allowed(masks, no)


def test_a_header_is_no_thought(byte_tokenizer: Tokenizer) -> None:
    """As in gpt-oss, where the reasoning is a message."""
    grammars = Grammars(byte_tokenizer, byte_tokenizer.vocab_size)
    bound = Budget(tokens=2, closing=(7,), lead=b"<m>")
    grammar = msgspec.structs.replace(grammars.free(), after=(b"final",), budget=bound)
    masks = Masks(1)
    masks.add(0, grammar, (), ())
    for token in byte_tokenizer.encode("a long header <m>", add_special_tokens=False):
        assert only(masks) is None
        masks.push([0], [token])
    for token in byte_tokenizer.encode("qz", add_special_tokens=False):
        assert only(masks) is None
        masks.push([0], [token])
    assert only(masks) == {7}


def allowed(masks: Masks, token: int, row: int = 0) -> bool:
    """Whether a row may draw a token now."""
    [place], bits = masks.bits([row])
    return bool(bits[place][token // 32] >> (token % 32) & 1)


def test_a_walk_goes_on_behind_what_was_drawn(byte_tokenizer: Tokenizer) -> None:
    """As after preemption: the mask is that of a walk that was never broken off."""
    grammar = made(byte_tokenizer, json={"type": "object", "properties": {"the sky": {"type": "integer"}}})
    masks = Masks(1)
    masks.add(0, grammar, (), ())
    drawn: list[int] = []
    for token in byte_tokenizer.encode('{"the sky":-12}', add_special_tokens=False):
        again = Masks(1)
        again.add(0, grammar, (), drawn)
        for one in (masks, again):
            [place], bits = one.bits([0])
            assert bool(bits[place][token // 32] >> (token % 32) & 1)
        assert (masks.bits([0])[1][0] == again.bits([0])[1][0]).all()
        drawn.append(token)
        masks.push([0], [token])


@pytest.mark.parametrize(
    ("tag", "good", "bad"),
    [
        (
            {
                "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}],
                "triggers": ["<f="],
            },
            ["none", "<f=a>1</f>", "x <f=a>1</f> y <f=a>22</f> z"],
            ["<f=b>", "<f=a>x", "<f=a>1</g>"],
        ),
        (
            {
                "format": {
                    "type": "sequence",
                    "elements": [
                        {
                            "type": "tag",
                            "begin": "<t>",
                            "content": {"type": "any_text"},
                            "end": "</t>",
                        },
                        {"type": "regex", "pattern": "[0-9]+"},
                        {"type": "const_string", "value": "!"},
                    ],
                }
            },
            ["<t>so it is</t>42!"],
            ["42!", "<t>x</t>!"],
        ),
        (
            {
                "format": {
                    "type": "tags_with_separator",
                    "separator": ";",
                    "at_least_one": True,
                    "tags": [
                        {
                            "type": "tag",
                            "begin": "(",
                            "content": {
                                "type": "or",
                                "elements": [
                                    {"type": "json_schema", "json_schema": {"type": "boolean"}},
                                    {"type": "const_string", "value": "hm"},
                                ],
                            },
                            "end": ")",
                        }
                    ],
                }
            },
            ["(true)", "(hm);(false)"],
            ["(hm),", "(1", ";"],
        ),
    ],
)
def test_structural_tags(byte_tokenizer: Tokenizer, tag: Any, good: list[str], bad: list[str]) -> None:
    grammar = made(byte_tokenizer, structural_tag=tag)
    for text in good:
        assert fits(byte_tokenizer, grammar, text), text
    for text in bad:
        assert not fits(byte_tokenizer, grammar, text, whole=False), text


def fits(tokenizer: Tokenizer, grammar: Any, text: str, whole: bool = True) -> bool:
    """Whether a text, byte for byte, is an answer (or its beginning)."""
    matcher = grammar.matcher.deep_copy()
    ids = [i for char in text.encode() for i in [single(tokenizer)[char]]]
    return matcher.try_consume_tokens(ids) == len(ids) and (not whole or matcher.is_accepting())


def single(tokenizer: Tokenizer) -> dict[int, int]:
    """The token of each byte."""
    found = {}
    for index in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(index) or b""
        if len(text) == 1 and index not in tokenizer.special_ids:
            found[text[0]] = index
    return found
