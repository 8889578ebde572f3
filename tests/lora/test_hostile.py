"""Adapters that are damaged, for another base, or ask for what is not done: one clear error, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_cases import PROMPTS, ask, make, request, write_adapter
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from octavo import LLM
from octavo.config.lora import parse_modules
from octavo.errors import BadRequest, ConfigError, OctavoError
from octavo.types.lora import LoRARequest


@pytest.fixture(scope="module")
def llm(base: Path) -> LLM:
    return make(base, max_lora_rank=64)


def refused(llm: LLM, folder: Path, message: str) -> None:
    """The adapter is refused with `message`, and the model answers as before."""
    with pytest.raises(OctavoError, match=message):
        ask(llm, PROMPTS[:1], LoRARequest(folder.name, 1, str(folder)))
    assert ask(llm, PROMPTS[:1])[0].finished


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"r": 0}, "rank 0; a rank is a whole number"),
    ({"r": 100000}, "rank 100000, more than the 64"),
    ({"r": "8"}, "rank '8'"),
    ({"r": True}, "rank True"),
    ({"rank_pattern": {"q_proj": -1}}, "rank -1"),
    ({"rank_pattern": {"(a+)+": 4}}, "for ever"),
    ({"rank_pattern": {"q_proj(": 4}}, "no regular expression"),
    ({"lora_alpha": 1e300}, "lora_alpha"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"peft_type": "IA3"}, "IA3"),
    ({"use_dora": True}, "use_dora: true"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "some"}, "bias is 'some'"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    ({"init_lora_weights": "loftq"}, "loftq"),
    ({"lora_bias": True}, "lora_bias: true"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"alora_invocation_tokens": [3]}, "activated LoRA"),
    ({"kasa_config": {"beta": 1}}, "KaSA"),
    ({"target_parameters": "mlp.experts.down_proj"}, "target_parameters is one text"),
    ({"target_parameters": {"a": 1}}, "target_parameters is"),
    ({"exclude_modules": [3]}, "exclude_modules"),
    ({"target_modules": "(.*)*q_proj"}, "for ever"),
    ({"target_modules": 5}, "target_modules is 5"),
    ({"target_modules": ["nothing"]}, "no LoRA weights"),
    ({"layers_to_transform": "x"}, "layers_to_transform"),
    ({"r": 8}, r"shape \[4, 48\]; this model's .* takes \[8, 48\]"),
]


@pytest.mark.parametrize(("said", "message"), CONFIGS, ids=[str(said)[:40] for said, _ in CONFIGS])
def test_configs(said: dict[str, Any], message: str, llm: LLM, tmp_path: Path) -> None:
    refused(llm, write_adapter(tmp_path / "a", 1, 4, ["q_proj"], **said), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not an object"),
        ('{"r": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"r": 4, "x": "' + "x" * (5 << 20) + '"}', "larger than"),
    ],
    ids=["half", "deep", "list", "digits", "huge"],
)
def test_config_files(text: str, message: str, llm: LLM, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"])
    (folder / "adapter_config.json").write_text(text)
    refused(llm, folder, message)


def edited(folder: Path, **changes: Any) -> Path:
    """The adapter with some tensors replaced or (None) removed, named by their ends."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for end, value in changes.items():
        name = next(name for name in tensors if end in name)
        del tensors[name]
        if value is not None:
            tensors[name] = value
    save_file(tensors, file)
    return folder


def test_tensors(llm: LLM, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return write_adapter(tmp_path / name, 1, 4, ["q_proj"])

    bad = np.zeros((4, 48), np.float32)
    bad[1, 2] = np.nan
    refused(llm, edited(fresh("nan"), lora_A=bad), "1 of 192 values that are no finite numbers")
    refused(llm, edited(fresh("wide"), lora_A=np.zeros((4, 4096), np.float32)), r"\[4, 4096\].*\[4, 48\]")
    refused(llm, edited(fresh("whole"), lora_A=np.zeros((4, 48), np.int32)), "dtype")
    refused(llm, edited(fresh("half"), lora_B=None), "no lora_B beside it")


def test_magnitudes(llm: LLM, tmp_path: Path) -> None:
    """DoRA's: of another size, no numbers, or not asked for."""

    def fresh(name: str, magnitude: NDArray[np.float32], **said: Any) -> Path:
        folder = write_adapter(tmp_path / name, 1, 4, ["q_proj"], **{"use_dora": True, **said})
        tensors = load_file(folder / "adapter_model.safetensors")
        stems = [name.removesuffix("lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
        tensors |= {f"{stem}lora_magnitude_vector": magnitude for stem in stems}
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    ones = np.ones(48, np.float32)
    refused(llm, fresh("short", ones[:40]), r"shape \[40\]")
    refused(llm, fresh("nan", ones * np.float32("nan")), "48 of 48 values that are no finite numbers")
    refused(llm, fresh("unasked", ones, use_dora=False), "use_dora: false")


def test_files(llm: LLM, tmp_path: Path) -> None:
    for cut in (0, 5, 200, -1):
        folder = write_adapter(tmp_path / f"cut{cut}", 1, 4, ["q_proj"])
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:cut])
        refused(llm, folder, "adapter_model.safetensors")
    (tmp_path / "empty").mkdir()
    refused(llm, tmp_path / "empty", "No adapter found")
    pickled = write_adapter(tmp_path / "pickled", 1, 4, ["q_proj"])
    (pickled / "adapter_model.safetensors").unlink()
    refused(llm, pickled, "No adapter found")
    (pickled / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(llm, pickled, "adapter_model.bin")


def test_modules_of_another_base(llm: LLM, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"], target_modules="all-linear")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "Other/Base"})
    )
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "query"): value for name, value in load_file(file).items()}, file)
    refused(llm, folder, r"adapts 2 modules \(of 2\).*layers.0.self_attn.query.*made for Other/Base")


def test_without_adapters(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"])
    with pytest.raises(BadRequest, match="enable_lora=True"):
        ask(make(base, enable_lora=False), PROMPTS[:1], request(1, folder))


def test_the_words_of_lora_modules() -> None:
    words = ["a=/x=y", '{"name": "b", "path": "/y", "base_model_name": "c"}']
    assert parse_modules(words) == (("a", "/x=y", None), ("b", "/y", "c"))
    for bad in (["a"], ["=x"], ["a="], ["{"], ["a=1", "a=2"], ['{"name": "a"}']):
        with pytest.raises(ConfigError, match="--lora-modules"):
            parse_modules(bad)
