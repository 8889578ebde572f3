"""Tiny random encoders made by transformers, bare and with heads, and its own numbers for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB = 120
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}


@dataclass(frozen=True)
class Case:
    """`kind` is transformers' name of the family, `model` what follows it in the class's name."""

    name: str
    kind: str
    model: str = "Model"
    config: dict[str, Any] = field(default_factory=dict)


_LOCAL = {"local_attention": 10, "num_hidden_layers": 4, "pad_token_id": 1}
CASES = (
    Case("bert", "Bert"),
    Case("bert-labels", "Bert", "ForSequenceClassification", {"num_labels": 3}),
    Case("bert-tokens", "Bert", "ForTokenClassification", {"num_labels": 5}),
    Case("bert-score", "Bert", "ForSequenceClassification", {"num_labels": 1, "hidden_act": "relu"}),
    Case("roberta", "Roberta", config={"type_vocab_size": 1}),
    Case("xlmr-score", "XLMRoberta", "ForSequenceClassification", {"num_labels": 1, "type_vocab_size": 1}),
    Case("roberta-tokens", "Roberta", "ForTokenClassification", {"num_labels": 2}),
    Case("modernbert", "ModernBert", config=_LOCAL),
    Case("modernbert-labels", "ModernBert", "ForSequenceClassification", {**_LOCAL, "num_labels": 3}),
    Case(
        "modernbert-mean",
        "ModernBert",
        "ForSequenceClassification",
        {**_LOCAL, "classifier_pooling": "mean", "norm_bias": True, "attention_bias": True, "mlp_bias": True},
    ),
    Case("modernbert-tokens", "ModernBert", "ForTokenClassification", {**_LOCAL, "classifier_bias": True}),
    Case("nomic", "NomicBert"),
    Case("nomic-labels", "NomicBert", "ForSequenceClassification", {"num_labels": 3}),
    Case("gte", "Gte"),
    Case("gte-score", "Gte", "ForSequenceClassification", {"num_labels": 1, "type_vocab_size": 0}),
    Case("gte-tokens", "Gte", "ForTokenClassification"),
)


@dataclass
class Made:
    """A checkpoint on disk and the transformers model that it was saved from."""

    case: Case
    folder: Path
    model: Any

    def rows(self, ids: list[int], types: list[int] | None = None) -> NDArray[np.float32]:
        """Hidden states [tokens, hidden] of a bare model, scores [tokens or 1, labels] of a classifier."""
        import torch

        more = {} if types is None else {"token_type_ids": torch.tensor([types])}
        with torch.inference_mode():
            out = self.model(torch.tensor([ids]), **more)
        found = (
            out.last_hidden_state[0]
            if self.case.model == "Model"
            else out.logits.reshape(-1, out.logits.shape[-1])
        )
        return np.asarray(found.numpy())


def make(case: Case, folder: Path) -> Made:
    """Build the case's model with seeded weights and save it."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = getattr(transformers, f"{case.kind}Config")(**{**SMALL, **copy.deepcopy(case.config)})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{case.kind}{case.model}")(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (0.5 if "embeddings" in name else 1.4 * parameter.shape[1] ** -0.5))
            else:
                parameter.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))
    model.save_pretrained(folder)
    return Made(case, folder, model)
