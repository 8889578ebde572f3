"""A checkpoint of every family, written as GGUF and read again, computes what it did before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Session
from family_cases import CASES, MOE, VOCAB, Case, make

from octavo.build.bind import bind
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.build.load_gguf import plain_norms
from octavo.build.quantize import quantize
from octavo.build.shard import shard
from octavo.build.source import Source, open_source
from octavo.convert.gguf import convert
from octavo.convert.gguf_file import Tensor, write_gguf
from octavo.errors import UnsupportedModel
from octavo.models.registry import lookup
from octavo.ops.contract import Limits, Precision
from octavo.ops.layouts import Dense, Experts, Layout
from octavo.pipeline.vocab import read_json

LIMITS = Limits(tokens=256, sequences=8, logit_rows=256, block_size=16, max_model_len=256)
PROMPT = [int(t) for t in np.random.default_rng(3).integers(0, VOCAB, 61)]
EXACT = 2e-5
"""Of the logits' deviation: llama3's frequencies are stored as quotients."""


def logits(source: Source, dtype: str = "float32", *, plain: bool = False) -> np.ndarray:
    """Of every token of PROMPT; `plain`: with the numbers that quantized weights stand for."""
    model = shard(declare(source.arch(None), dtype))
    if source.gguf is not None:
        model = plain_norms(model)
    stored = None if source.gguf else quantize(source.arch(None))
    tensors = load(model, source.checkpoint(), dtype, stored=stored)
    if plain:
        tensors = ((param, as_floats(tensor)) for param, tensor in tensors)
    precision = Precision(quantized="float32")
    session = Session(bind(model, tensors, precision, LIMITS, "native", threads=(1, 1)))
    return session.step([(session.start(PROMPT), len(PROMPT))], every_row=True)


def as_floats(tensor: Layout) -> Layout:
    if isinstance(tensor, Experts):
        return Experts.of([as_floats(one) for one in tensor])
    return Dense(tensor.dequantize(), "float32")


def with_tokenizer(folder: Path) -> Path:
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCAB)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    return folder


def both(case: Case, folder: Path, outtype: str) -> tuple[Source, Source]:
    made = with_tokenizer(make(case, folder).folder)
    convert(made, folder / "model.gguf", outtype)
    return open_source(made, read_json), open_source(folder / "model.gguf", read_json)


REFUSED = {
    "llama-head16-mha": "computes silu",
    "qwen2-yarn-options": "truncation",
    "smollm3": "every fourth layer",
    "smollm3-window": "every fourth layer",
    "phi": "qk_layernorm",
    "gpt2-untied-by-depth": "inverse_layer_idx",
    "qwen2-moe-mixed": "by their sum",
    "qwen3-moe-window": "by their sum",
    "olmoe-all": "by their sum",
    "gpt-oss-limit": "limits its activation",
}
"""What GGUF has no word for."""
WITHOUT_DYNAMIC = [
    *(case for case in CASES if "dynamic" not in case.name),
    Case("smollm3-fourth", "SmolLM3", {"num_hidden_layers": 5}),
    Case(
        "qwen3-moe-all-window",
        "Qwen3Moe",
        {**MOE, "norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 9},
    ),
]
"""GGUF keeps the plain frequencies of a rope that changes with the length."""


@pytest.mark.parametrize("case", WITHOUT_DYNAMIC, ids=lambda case: case.name)
def test_same_logits(case: Case, tmp_path: Path) -> None:
    if case.name in REFUSED:
        with pytest.raises(UnsupportedModel, match=REFUSED[case.name]):
            both(case, tmp_path, "f32")
        return
    before, after = both(case, tmp_path, "f32")
    expected = logits(before)
    worst = np.abs(logits(after) - expected).max()
    assert worst <= EXACT * max(1.0, float(expected.std()))
    assert lookup(after.arch(None).architecture).gguf == lookup(before.arch(None).architecture).gguf


@pytest.mark.parametrize("name", ["qwen3-biased", "olmo2", "olmoe"])
def test_what_llama_cpp_does_not_load_gets_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = next(case for case in CASES if case.name == name)
    convert(with_tokenizer(make(case, tmp_path).folder), tmp_path / "model.gguf", "f16")
    assert "llama.cpp does not load" in caplog.text


QUANTIZED = {"q8_0": 0.06, "q6_k": 0.2, "q5_1": 0.35, "q5_0": 0.4, "q4_1": 0.65, "q4_0": 0.7, "iq4_nl": 0.65,
             "iq4_xs": 0.65,
             "q3_k_m": 1.0, "q2_k": 1.6,
             "q4_k_m": 0.65, "q5_k_m": 0.3, "f16": 2e-3, "bf16": 0.03}  # fmt: skip
"""Largest share of the logits' deviation that rounding may cost: half as much again as measured. Weights of
noise lose more than trained ones."""


@pytest.mark.parametrize("outtype", QUANTIZED)
def test_quantized_types_lose_little(outtype: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    before, after = both(Case(f"llama-{outtype}", "Llama", sizes), tmp_path, outtype)
    expected = logits(before)
    error = np.sqrt(np.square(logits(after) - expected).mean()) / expected.std()
    assert error <= QUANTIZED[outtype], error
    assert after.quantized == (outtype not in ("f16", "bf16"))


def bytes_of(tensor: Tensor) -> np.ndarray:
    """What the file would hold."""
    return np.concatenate(
        [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in tensor.chunks()]
    )


def single(tensors: list[Tensor]) -> list[Tensor]:
    """Each expert by itself, as the first files of Mixtral have it."""
    found = []
    for tensor in tensors:
        if "_exps." not in tensor.name:
            found.append(tensor)
            continue
        for e, one in enumerate(bytes_of(tensor).reshape(tensor.shape[0], -1)):
            name = tensor.name.replace("_exps.", f".{e}.")
            found.append(Tensor(name, tensor.shape[1:], tensor.type, lambda one=one: iter([one])))
    return found


def fused(tensors: list[Tensor]) -> list[Tensor]:
    """Gate and up in one stack, gate first."""
    named = {tensor.name: tensor for tensor in tensors}
    found = []
    for tensor in tensors:
        if "ffn_up_exps" in tensor.name:
            continue
        if "ffn_gate_exps" in tensor.name:
            count, rows, cols = tensor.shape
            parts = [
                bytes_of(t).reshape(count, -1) for t in (tensor, named[tensor.name.replace("gate", "up")])
            ]
            both = np.concatenate(parts, axis=1)
            name = tensor.name.replace("ffn_gate_exps", "ffn_gate_up_exps")
            tensor = Tensor(name, (count, 2 * rows, cols), tensor.type, lambda both=both: iter([both]))
        found.append(tensor)
    return found


@pytest.mark.parametrize("spelled", [single, fused])
def test_other_spellings_of_experts_are_the_same_model(
    spelled: Callable[[list[Tensor]], list[Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    source, stacked = both(Case("mixtral-spelled", "Mixtral", {"num_local_experts": 4}), tmp_path, "q8_0")

    def written(path: Path, metadata: Any, tensors: list[Tensor], *rest: Any) -> int:
        return write_gguf(path, metadata, spelled(tensors), *rest)

    monkeypatch.setattr("octavo.convert.gguf.write_gguf", written)
    convert(source.folder, tmp_path / "other" / "m.gguf", "q8_0")
    other = open_source(tmp_path / "other" / "m.gguf", read_json)
    assert other.gguf is not None
    assert not any("ffn_gate_exps" in name for name in other.gguf.names())
    np.testing.assert_array_equal(logits(other), logits(stacked))


MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2-moe": ("Qwen2Moe", {**MOE, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "moe_intermediate_size": 64, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_quantized_experts_are_the_numbers_they_stand_for(name: str, tmp_path: Path) -> None:
    kind, config = MIXTURES[name]
    before, after = both(Case(name, kind, config), tmp_path, "q8_0")
    gguf = after.gguf
    assert gguf is not None
    types = {gguf.entry(tensor).type.name for tensor in gguf.names() if "_exps.weight" in tensor}
    assert types == {"Q8_0"}
    expected, found = logits(before), logits(after)
    assert np.abs(found - logits(after, plain=True)).max() <= EXACT * max(1.0, float(expected.std()))
    # A token between two experts may go to the other one.
    assert np.sqrt(np.square(found - expected).mean()) <= 0.15 * expected.std()
