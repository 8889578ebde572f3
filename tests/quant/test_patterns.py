"""Regular expressions of configs: the same answers as `re`, and an end whatever the pattern."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import UnsupportedModel
from octavo.quant.patterns import Pattern

NAMES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.17.mlp.experts.3.down_proj",
    "model.layers.17.mlp.gate",
    "lm_head",
    "",
)
REAL = (
    r".*self_attn\.(q|k|v)_proj$",
    r"^(?!.*(lm_head|gate$)).*$",
    r"model\.layers\.(?:0|1[0-9])\..*",
    r".*layers\.(?P<n>\d+)\.mlp\.experts\.\d+\.(gate|up|down)_proj",
    r"[^.]*\.layers\.[0-9]{1,2}\.",
    r".*\.mlp\..*",
    r"lm_head|.*gate\b",
    r"(?=.*expert)model.+?proj",
    r"(a|ab)*(mo|m)(del)?",
    r"model(\.\w+){2}\.s",
    r"]",
    r"[]m]od",
    r"a{,2}mo",
    r"x{2,}|",
)


@pytest.mark.parametrize("text", REAL)
@pytest.mark.parametrize("name", NAMES)
def test_real_patterns_say_what_re_says(text: str, name: str) -> None:
    assert Pattern(text, "targets").matches(name) == (re.match(text, name) is not None)


pieces = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\.", "^", "$", r"\w"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?"])).map(
            "(?:{0[0]}){0[1]}".format
        ),
        inner.map("(?={})".format),
        inner.map("(?!{})".format),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces, st.text("ab.", max_size=6))
def test_any_pattern_says_what_re_says(text: str, name: str) -> None:
    assert Pattern(text, "targets").matches(name) == (re.match(text, name) is not None)


@pytest.mark.parametrize(
    "text",
    [
        r"(a+)+$",
        r"(a|a)*$",
        r"(a*)*b",
        r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)x",
        r".*a" * 60 + "b",
        "(?:" * 25 + "a*" + ")*" * 25 + "b",
        "(?:(?:a{1000}){1000}){1000}",
        "(?=" * 20 + ".*a" + ")" * 20 + "b",
    ],
)
def test_no_pattern_takes_long(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(UnsupportedModel):  # too many steps
        assert not Pattern(text, "targets").matches("a" * 499 + "!")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(a", "not closed"),
        ("a)", "unbalanced"),
        (r"(a)\1", "not supported"),
        ("(?<=a)b", "not supported"),
        ("(?i)a", "not supported"),
        ("*a", "not supported"),
        ("[a", "not supported"),
        ("[z-a]", "bad character range"),
        ("a{3,2}", "less than it must"),
        ("a" * 1025, "at most 1024"),
        ("(" * 40 + ")" * 40, "more than 30 deep"),
        ("a\\", "not supported"),
    ],
)
def test_what_is_not_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        Pattern(text, "The quantization config targets")


def test_names_out_of_measure_fit_nothing() -> None:
    assert not Pattern(".*", "targets").matches("a" * 513)
