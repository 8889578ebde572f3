"""Models served from GGUF files: the shared oracles, and the trained model of the shared data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError

SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "data" / "weights" / "stories260k"
ORACLE = SHARED / "oracles" / "gguf" / "qwen2-Q4_K_M.gguf"

pytestmark = [
    pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def llm(model: Path | str, **options: Any) -> LLM:
    return LLM(str(model), dtype="float32", activation_dtype="fp32", max_num_seqs=8, **options)


def greedy(model: LLM, prompt: Any, steps: int = 32) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True)
    return list(model.generate(prompt, params)[0].outputs[0].token_ids)


def test_the_oracles_logits() -> None:
    golden = json.loads((ORACLE.parent / "qwen2-Q4_K_M.golden.json").read_text())
    model = llm(ORACLE)
    params = SamplingParams(temperature=0, max_tokens=32, logprobs=20, ignore_eos=True)
    for case in golden["cases"]:
        assert model.get_tokenizer().encode(case["prompt"], add_special_tokens=False) == case["prompt_ids"]
        answer = model.generate({"prompt_token_ids": case["prompt_ids"]}, params)[0].outputs[0]
        found = {token: entry.logprob for token, entry in answer.logprobs[0].items()}
        for token, logprob in zip(case["top_ids"][:10], case["top_logprobs"], strict=False):
            assert found[token] == pytest.approx(logprob, abs=2e-4)
        for step, (token, wanted) in enumerate(zip(answer.token_ids, case["greedy_ids"], strict=True)):
            if token != wanted:
                assert case["greedy_margin"][step] < 1e-3
                break


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_trained_model_says_what_its_folder_says(kind: str) -> None:
    expected = json.loads((STORIES / "expected.json").read_text())["results"]["model.safetensors (float32)"]
    model = llm(STORIES / f"stories260k-{kind}.gguf")
    case = expected["greedy"][0]
    assert greedy(model, case["prompt"], 64) == case["output_ids"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_perplexity_of_quantized_files(kind: str) -> None:
    """The numbers of the same weights dequantized, in windows of 256 tokens."""
    results = json.loads((STORIES / "expected.json").read_text())["results"]
    name = next(key for key in results if kind in key)
    model = llm(STORIES / f"stories260k-{kind}.gguf")
    text = (SHARED / "data" / "corpus" / "tinystories_a.txt").read_text()
    ids = model.get_tokenizer().encode(text[:40000], add_special_tokens=False)
    windows = [[1, *ids[at : at + 255]] for at in range(0, 30 * 255, 255)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in model.generate([{"prompt_token_ids": window} for window in windows], params):
        for entry in output.prompt_logprobs[1:]:
            total -= next(iter(entry.values())).logprob
            count += 1
    assert math.exp(total / count) == pytest.approx(results[name]["perplexity"]["value"], rel=2e-3)


def test_a_file_without_suffix_and_a_folder_with_one_file(tmp_path: Path) -> None:
    shutil.copy(STORIES / "stories260k-Q8_0.gguf", tmp_path / "model")
    expected = greedy(llm(STORIES / "stories260k-Q8_0.gguf"), "Once upon a time", 8)
    assert greedy(llm(tmp_path / "model"), "Once upon a time", 8) == expected
    assert greedy(llm(tmp_path), "Once upon a time", 8) == expected
    shutil.copy(STORIES / "stories260k-Q4_0.gguf", tmp_path / "another.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF models: another\.gguf, model"):
        llm(tmp_path)


def test_another_tokenizer(tmp_path: Path) -> None:
    model = llm(STORIES / "stories260k-F32.gguf", tokenizer=str(STORIES))
    assert greedy(model, "Once upon a time", 4) == [432, 383, 286, 261]


def test_quantization_of_a_quantized_file_loses(caplog: pytest.LogCaptureFixture) -> None:
    model = llm(STORIES / "stories260k-Q8_0.gguf", quantization="int4", load_format="safetensors")
    assert "--quantization int4 is not used" in caplog.text
    assert "--load-format safetensors" in caplog.text
    assert greedy(model, "Once upon a time", 4) == [432, 383, 286, 261]


def test_plain_weights_can_be_rounded() -> None:
    model = llm(STORIES / "stories260k-F32.gguf", quantization="int8")
    assert greedy(model, "Once upon a time", 4) == [432, 383, 286, 261]
