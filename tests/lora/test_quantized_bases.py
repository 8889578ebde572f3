"""Adapters over bases that are stored quantized: what they give over the same numbers stored as floats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lora_cases import F32, PROMPTS, ask, make, request, values
from safetensors.numpy import save_file

from octavo import SamplingParams
from octavo.build.load import load
from octavo.build.outline import outline
from octavo.config.engine import EngineConfig
from octavo.convert.safetensors import to_safetensors
from octavo.models import names
from octavo.pipeline.vocab import read_json

ORACLES = Path(__file__).parents[3] / "shared" / "oracles"
BASES = [
    "quant/gptq-qwen2-g32-actorder",
    "quant/awq-qwen2-g64",
    "quant/ct-qwen2-w8a8-int8-dyn",
    "gguf/qwen2-Q4_K_M.gguf",
]

pytestmark = pytest.mark.skipif(not ORACLES.is_dir(), reason="no shared data")


def as_floats(base: Path, into: Path) -> Path:
    """A checkpoint of the numbers that `base` stands for."""
    if base.is_file():
        to_safetensors(base, into, "f32", lambda _: None)
        return into
    known = outline(EngineConfig(model=str(base)), base, read_json)
    found: dict[str, F32] = {}
    loaded = load(known.decoder, known.checkpoint, "float32", roundings=known.roundings, stored=known.stored)
    for param, tensor in loaded:
        whole, first = tensor.dequantize(), 0
        source = names.sources(known.decoder, param)
        for spellings, rows in zip(source.names, source.rows, strict=True):
            found[spellings[0]] = np.ascontiguousarray(whole[first : first + rows], np.float32)
            first += rows
    into.mkdir()
    save_file(found, into / "model.safetensors")
    said = read_json(base / "config.json")
    plain = {key: value for key, value in said.items() if key != "quantization_config"}
    (into / "config.json").write_text(json.dumps({**plain, "torch_dtype": "float32"}))
    return into


def adapter(plain: Path, folder: Path) -> Path:
    """One for all matrices of the float checkpoint's layers."""
    known = outline(EngineConfig(model=str(plain)), plain, read_json)
    checkpoint, random = known.checkpoint, np.random.default_rng(4)
    tensors: dict[str, F32] = {}
    for name in checkpoint.names():
        shape = checkpoint.described(name)[1]
        if "layers." not in name or len(shape) != 2:
            continue
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = np.asarray(random.standard_normal((4, shape[1])), np.float32)
        spread = 0.3 / math.sqrt(shape[1])
        tensors[f"{stem}.lora_B.weight"] = np.asarray(random.normal(0, spread, (shape[0], 4)), np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("name", BASES)
def test_like_the_same_numbers_as_floats(name: str, tmp_path: Path) -> None:
    plain = as_floats(ORACLES / name, tmp_path / "plain")
    lora = request(1, adapter(plain, tmp_path / "adapter"))
    quantized, floats = (
        make(base, activation_dtype="fp32", max_model_len=128) for base in (ORACLES / name, plain)
    )
    given, own = ask(quantized, PROMPTS, [lora, lora, None, lora]), ask(quantized, PROMPTS)
    for ours, expected in zip(given, ask(floats, PROMPTS, [lora, lora, None, lora]), strict=True):
        np.testing.assert_allclose(values(ours)[1][0], values(expected)[1][0], atol=1e-3)
    moved = [
        not np.allclose(values(a)[1][0], values(b)[1][0], atol=0.01) for a, b in zip(given, own, strict=True)
    ]
    assert moved == [True, True, False, True]


STORIES = ORACLES.parent / "data/weights"


@pytest.mark.parametrize(
    "base", ["", "stories260k-F32.gguf", "stories260k-F16.gguf", "stories260k-Q8_0.gguf"]
)
def test_a_trained_adapter(base: str) -> None:
    """Its training's own answer, from the checkpoint and from GGUF, where rows stand elsewhere."""
    folder = STORIES / "stories260k-lora-shakespeare"
    if not folder.is_dir():
        pytest.skip("no shared data")
    expected = json.loads((folder / "expected.json").read_text())["greedy"]
    llm = make(STORIES / "stories260k" / base, max_model_len=256, activation_dtype="fp32")
    wanted = expected["output_ids"]
    params = SamplingParams(temperature=0, max_tokens=len(wanted), ignore_eos=True, detokenize=False)
    prompt = {"prompt_token_ids": expected["prompt_ids"]}
    answers = [llm.generate(prompt, params, lora_request=lora)[0] for lora in (request(1, folder), None)]
    given, own = (list(answer.outputs[0].token_ids) for answer in answers)
    assert own != wanted
    if base.endswith("Q8_0.gguf"):  # other numbers, so that a near tie may fall otherwise
        assert given[:8] == wanted[:8]
    else:
        assert given == wanted
