"""Small parts of the offline classes: token texts, argument classes, keywords."""

from __future__ import annotations

import argparse

import pytest

from octavo.llm import LLM, EngineArgs
from octavo.llm.args import keywords_of
from octavo.llm.collect import TokenTexts


def test_decoded_tokens_of_a_split_character() -> None:
    parts = {1: b"a", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b"\xff"}
    texts = TokenTexts(lambda token: parts[token])
    seen = []
    for token in (1, 2, 3, 1, 4, 2, 1):
        seen.append(texts.text(token))
        texts.advance(token)
    assert seen == ["a", "", "é", "a", "\ufffd", "", "a"]


def test_engine_args_are_keywords() -> None:
    args = EngineArgs(model="m", max_model_len=5, swap_space=4)
    assert keywords_of(args) == {"model": "m", "max_model_len": 5, "swap_space": 4}
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    parsed = parser.parse_args(["--model", "x", "--max-model-len", "9", "--enforce-eager", "-tp", "1"])
    again = EngineArgs.from_cli_args(parsed)
    assert keywords_of(again) == {
        "model": "x",
        "max_model_len": "9",
        "enforce_eager": True,
        "tensor_parallel_size": "1",
    }


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"Unknown argument 'max_model_lenn'\. Did you mean max_model_len\?"):
        LLM("m", max_model_lenn=3)
