"""A tiny classifier, reranker, embedder and decoder on disk, for the engine, LLM and the doors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """folders(name) -> Made: embed, labels, score, tokens, decoder; made on first use."""
    from encoder_cases import Case, make
    from pooling_files import tokenizer

    cases = {
        "embed": Case("embed", "Bert"),
        "labels": Case(
            "labels",
            "Bert",
            "ForSequenceClassification",
            {"id2label": {"0": "bad", "1": "fair", "2": "good"}},
        ),
        "score": Case("score", "Bert", "ForSequenceClassification", {"num_labels": 1}),
        "tokens": Case("tokens", "Bert", "ForTokenClassification", {"num_labels": 4}),
        "decoder": Case("decoder", "Qwen3", "ForCausalLM", {"num_key_value_heads": 2, "head_dim": 16}),
    }
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = make(cases[name], folder)
            tokenizer(folder)
        return made[name]

    yield get
    made.clear()
