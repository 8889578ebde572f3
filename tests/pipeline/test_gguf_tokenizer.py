"""Tokenizers out of GGUF files: llama.cpp's own test texts, round trips, and broken metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.convert.gguf_tokenizer import special_ids, tokenizer_metadata
from octavo.errors import CheckpointError
from octavo.pipeline.gguf_tokenizer import gguf_templates, gguf_tokenizer
from octavo.pipeline.pretokenizers import PRES, flat_steps, name_of
from octavo.pipeline.tokenizer import Tokenizer
from octavo.weights.gguf import GgufFile

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENIZERS = DATA / "tokenizers"
shared = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="no shared data")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TOKENIZERS / "expected" / name).read_text().splitlines()]


def out_of(metadata: dict[str, Any]) -> Tokenizer:
    found = gguf_tokenizer(metadata, "x.gguf")
    assert found is not None
    return found


def as_read(folder: Path, architecture: str, vocab: int) -> Tokenizer:
    """A folder's tokenizer, written as metadata and made of it again."""
    tokenizer = Tokenizer.load(folder)
    metadata = {
        **tokenizer_metadata(tokenizer, architecture, vocab),
        **special_ids(tokenizer.eos_id, ()),
    }
    numbers = {"i32[]": np.int32, "f32[]": np.float32}
    return out_of(
        {
            key: np.array(value.value, numbers[value.kind]) if value.kind in numbers else value.value
            for key, value in metadata.items()
        }
    )


@shared
@pytest.mark.parametrize("name", ["gpt-2", "phi-3", "bert-bge"])
def test_llama_cpps_files_and_texts(name: str) -> None:
    path = TOKENIZERS / "gguf" / f"ggml-vocab-{name}.gguf"
    tokenizer = out_of(GgufFile(path).metadata)
    for case in lines(f"llamacpp-{name}.jsonl"):
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]


@shared
@pytest.mark.parametrize(
    ("folder", "architecture", "vocab", "expected"),
    [
        ("tokenizers/qwen3", "qwen3", 151669, "hf-qwen3.jsonl"),
        ("tokenizers/gpt2", "gpt2", 50257, "hf-gpt2.jsonl"),
        ("tokenizers/minimind", "llama", 6400, "hf-minimind.jsonl"),
        ("weights/stories260k", "llama", 512, "hf-stories260k.jsonl"),
    ],
)
def test_round_trips(folder: str, architecture: str, vocab: int, expected: str) -> None:
    before, after = Tokenizer.load(DATA / folder), as_read(DATA / folder, architecture, vocab)
    for case in lines(expected):
        assert after.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        assert after.encode(case["text"]) == before.encode(case["text"])
        assert after.decode(case["ids"]) == before.decode(case["ids"])
    assert (after.bos_id, after.eos_id) == (before.bos_id, before.eos_id)
    assert set(before.special_ids) <= set(after.special_ids)


@shared
def test_qwen2_as_llama_cpp_has_it() -> None:
    tokenizer = as_read(TOKENIZERS / "qwen3", "qwen2", 151669)
    for case in lines("llamacpp-qwen2.jsonl"):
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]


def test_names_of_pre_tokenizers() -> None:
    for name, pre in PRES.items():
        found = name_of(pre.steps, "", ignore_merges=pre.ignore_merges)
        assert found is not None, name
        assert PRES[found].steps == pre.steps
    sequence = {"type": "Sequence", "pretokenizers": list(PRES["qwen2"].steps)}
    assert name_of(flat_steps(sequence), "qwen2", ignore_merges=False) == "qwen2"
    assert name_of(PRES["smollm"].steps, "starcoder2", ignore_merges=False) == "starcoder"
    assert name_of([{"type": "Metaspace"}], "llama", ignore_merges=False) is None


GPT2: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
    "tokenizer.ggml.token_type": np.array([1, 1, 1, 3], np.int32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
}


def test_the_smallest_tokenizer() -> None:
    tokenizer = out_of(GPT2)
    assert tokenizer.encode("abba<end>") == [2, 1, 0, 3]
    assert tokenizer.decode([2, 1, 3], skip_special_tokens=True) == "abb"
    assert tokenizer.eos_id == 3
    added = out_of({**GPT2, "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.add_bos_token": True})
    assert added.encode("a") == [3, 0]
    for strange in ("of-tomorrow", np.arange(2)):
        assert out_of({**GPT2, "tokenizer.ggml.pre": strange}).encode("ab") == [2]
    assert gguf_tokenizer({"tokenizer.ggml.model": "no_vocab"}, "x") is None
    assert gguf_tokenizer({}, "x") is None


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"model": "t6"}, "of the kind 't6'.*--tokenizer"),
        ({"model": np.arange(2)}, r"of the kind array\(\[0, 1\]\)"),
        ({"tokens": "x"}, "tokens is missing"),
        ({"tokens": ["a"]}, "1 tokens, but 4 token types"),
        ({"merges": 5}, "merges is missing"),
        ({"merges": ["ab"]}, "'ab' is no pair"),
        ({"merges": ["a zz"]}, "cannot be made"),
        ({"model": "llama"}, "scores is missing"),
        ({"model": "llama", "scores": np.zeros(2, np.float32)}, "scores is missing"),
    ],
)
def test_broken_metadata(change: dict[str, Any], pattern: str) -> None:
    metadata = {**GPT2, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(CheckpointError, match=pattern):
        gguf_tokenizer(metadata, "x.gguf")


def test_special_tokens_outside_the_vocabulary_count_for_nothing() -> None:
    for value in (99, -1, "3", True):
        assert out_of({**GPT2, "tokenizer.ggml.eos_token_id": value}).eos_id is None


def test_chat_templates() -> None:
    found = {"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B", "x": "C"}
    assert gguf_templates(found) == {"default": "A", "tool_use": "B"}
    tokenizer = out_of({**GPT2, **found})
    assert tokenizer.config["chat_template"] == {"default": "A", "tool_use": "B"}


def test_unigrams() -> None:
    """XLM-RoBERTa's and T5's kind: the likeliest pieces, after a table of replacements."""
    pieces = [
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("a", -3.0),
        ("b", -3.5),
        ("ab", -4.0),
    ]
    pieces += [("▁ab", -4.5), ("fi", -5.0)]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [text for text, _ in pieces],
        "tokenizer.ggml.scores": np.array([score for _, score in pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([3, 3, 2, 1, 1, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    tokenizer = out_of(metadata)
    assert tokenizer.encode("  ab   aab ") == [0, 7, 3, 4, 6, 1]
    assert tokenizer.encode("abz", add_special_tokens=False) == [7, 2]
    assert tokenizer.decode([7, 3, 4, 6]) == "ab aab"
    rng = np.random.default_rng(1)
    for raw in (b"", b"\0" * 4, b"\xff" * 64, b"\0\4\0\0" + bytes(1024), rng.bytes(3000)):
        metadata["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(raw, np.uint8)
        if raw:
            with pytest.raises(CheckpointError, match="precompiled_charsmap is damaged"):
                gguf_tokenizer(metadata, "x.gguf")
