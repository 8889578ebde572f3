"""Token by token gives the text of the whole, never half a character, at a constant cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.pipeline.detokenizer import make_detokenizer
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import REPLACEMENT

TEXT = st.text(
    alphabet=st.one_of(st.sampled_from("the sky is blue. \n"), st.characters(codec="utf-8")), max_size=40
)


def pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip: bool = True) -> list[str]:
    detokenizer = make_detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def assert_every_split(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    """Prompt and reply cut at any token join to the whole text."""
    whole = tokenizer.decode(ids, skip)
    for cut in range(len(ids) + 1):
        head = tokenizer.decode(ids[:cut], skip)
        if head.endswith(REPLACEMENT) or not whole.startswith(head):
            continue  # the prompt ends inside a character
        assert head + "".join(pieces(tokenizer, ids[:cut], ids[cut:], skip)) == whole


@given(text=TEXT, skip=st.booleans())
@settings(max_examples=60, deadline=None)
def test_byte_level_splits(byte_tokenizer: Tokenizer, text: str, skip: bool) -> None:
    assert_every_split(byte_tokenizer, byte_tokenizer.encode("<|im_start|>" + text + "<|im_end|>"), skip)


@given(text=TEXT, skip=st.booleans())
@settings(max_examples=60, deadline=None)
def test_piece_splits(piece_tokenizer: Tokenizer, text: str, skip: bool) -> None:
    assert_every_split(piece_tokenizer, piece_tokenizer.encode(text), skip)


@given(ids=st.lists(st.integers(0, 10), max_size=12), skip=st.booleans())
@settings(max_examples=60, deadline=None)
def test_window_equals_the_whole(word_tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(pieces(word_tokenizer, [], ids, skip)) == word_tokenizer.decode(ids, skip)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_byte_level_ids(byte_tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_tokenizer.vocab_size - 1), max_size=30))
    assert "".join(pieces(byte_tokenizer, [], ids, False)) == byte_tokenizer.decode(ids)


def test_no_broken_character_is_shown(byte_tokenizer: Tokenizer, piece_tokenizer: Tokenizer) -> None:
    for tokenizer in (byte_tokenizer, piece_tokenizer):
        ids = tokenizer.encode("🙂龘", add_special_tokens=False)
        assert len(ids) > 2
        shown = pieces(tokenizer, [], ids)
        assert not any(REPLACEMENT in piece for piece in shown)
        assert "".join(shown).strip() == "🙂龘"


def test_an_unfinished_character_is_flushed(byte_tokenizer: Tokenizer, piece_tokenizer: Tokenizer) -> None:
    for tokenizer in (byte_tokenizer, piece_tokenizer):
        ids = tokenizer.encode("🙂", add_special_tokens=False)[:-1]
        shown = pieces(tokenizer, [5], ids)
        assert "".join(shown[:-1]).strip() == ""
        assert REPLACEMENT in shown[-1]


def test_invalid_bytes_do_not_hold_text_back(piece_tokenizer: Tokenizer) -> None:
    sky = piece_tokenizer.token_id("▁sky") or 0
    shown = pieces(piece_tokenizer, [sky], [3 + 0xFF, 3 + 0xE4, 3 + 0xBD, sky])
    assert "".join(shown) == REPLACEMENT * 3 + " sky"


def test_leading_space_belongs_to_the_position(piece_tokenizer: Tokenizer) -> None:
    sky = piece_tokenizer.token_id("▁sky") or 0
    assert pieces(piece_tokenizer, [1], [sky])[0] == "sky"
    assert pieces(piece_tokenizer, [1, sky], [sky])[0] == " sky"


def test_special_tokens_are_skipped_or_shown(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a<|im_end|><think>")
    assert "".join(pieces(byte_tokenizer, [], ids, True)) == "a<think>"
    assert "".join(pieces(byte_tokenizer, [], ids, False)) == "a<|im_end|><think>"


def test_a_window_stays_small(word_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    decode = Tokenizer.decode

    def watch(self: Tokenizer, ids: list[int], *args: bool) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(self, ids, *args)

    monkeypatch.setattr(Tokenizer, "decode", watch)
    pieces(word_tokenizer, [2] * 100, [2, 3, 4, 5] * 100)
    assert longest <= 8


@pytest.mark.parametrize(
    "name", ["qwen3", "gpt2", "minimind", "bert-base-uncased", "mistral-v1", "mistral-v3"]
)
def test_real_tokenizers(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.load(shared / "data" / "tokenizers" / name)
    expected = shared / "data" / "tokenizers" / "expected"
    file = expected / f"{'sentencepiece' if 'mistral' in name else 'hf'}-{name}.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        ids = tokenizer.encode(json.loads(line)["text"])[:60]
        if name == "bert-base-uncased":  # decoding joins its pieces by what is around them
            assert "".join(pieces(tokenizer, [], ids)) == tokenizer.decode(ids, True)
        else:
            assert_every_split(tokenizer, ids, True)
            assert_every_split(tokenizer, ids, False)
