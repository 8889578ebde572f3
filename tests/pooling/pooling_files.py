"""The files of tiny models that pool, but for their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "yes",
    "no",
    *"abcdefghijklmnopqrstuvwxyz",
    "hello",
    "world",
    "paris",
]


def tokenizer(folder: Path) -> None:
    """A tokenizer.json of whole words that frames texts and pairs as BERT does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    backend.save(str(folder / "tokenizer.json"))


def sentence_transformer(folder: Path, rows: str, normalize: bool = True, dense: Any = None) -> None:
    """sentence-transformers' files beside a model: pooling `rows`, a Dense of (weight, bias, activation)."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    config = {f"pooling_mode_{mode}": mode == rows for mode in modes}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 64, **config}))
    if dense:
        from safetensors.numpy import save_file

        weight, bias, act = dense
        (folder / "2_Dense").mkdir(exist_ok=True)
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
        sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": True}
        told = {**sizes, "activation_function": f"torch.nn.modules.activation.{act}"}
        (folder / "2_Dense/config.json").write_text(json.dumps(told))
