from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import CheckpointError
from octavo.weights.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from writers import save

ORACLES = Path(__file__).parents[2] / "../shared/oracles/models"
A, B = np.arange(4, dtype=np.float32), np.ones((2, 2), dtype=np.float16)


def index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_a_single_file(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": A, "b": B})
    save(tmp_path / "adapter_model.safetensors", {"a": A})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.names() == ("a", "b")
    assert checkpoint.nbytes == A.nbytes + B.nbytes
    assert checkpoint.file_of("a") == tmp_path / "model.safetensors"
    assert np.array_equal(checkpoint.get("a").data, A)
    checkpoint.release("a")
    with pytest.raises(KeyError):
        checkpoint.get("c")


def test_a_weight_file_by_its_own_path(tmp_path: Path) -> None:
    path = save(tmp_path / "whatever.safetensors", {"a": A})
    assert open_checkpoint(path).names() == ("a",)
    (tmp_path / "notes.md").write_text("x")
    assert "no weight file" in refusal(tmp_path / "notes.md")


def test_shards_with_an_index(tmp_path: Path) -> None:
    save(tmp_path / "model-00001-of-00002.safetensors", {"a": A})
    save(tmp_path / "model-00002-of-00002.safetensors", {"b": B, "a": A + 1})
    save(tmp_path / "consolidated.safetensors", {"other": A})
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index(tmp_path, names)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == {"a", "b"}
    assert np.array_equal(checkpoint.get("a").data, A)
    index(tmp_path, names | {"c": "model-00002-of-00002.safetensors"})
    assert "'c'" in refusal(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    index(tmp_path, names)
    said = refusal(tmp_path)
    assert "model-00002-of-00002.safetensors" in said
    assert "names 2 shards, 1 are here" in said


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "C:x", "", "a\0b", "a\nb", "é" * 200],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    save(tmp_path.parent / "x.safetensors", {"a": A})
    index(tmp_path, {"a": name})
    assert "inside its folder" in refusal(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_a_broken_index(tmp_path: Path, weight_map: object) -> None:
    index(tmp_path, weight_map)
    assert "weight_map" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert "not valid JSON" in refusal(tmp_path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "no regular file" in refusal(tmp_path)


def test_several_files_without_an_index(tmp_path: Path) -> None:
    save(tmp_path / "part1.safetensors", {"a": A})
    save(tmp_path / "part2.safetensors", {"b": B})
    save(tmp_path / "consolidated.safetensors", {"a": A})
    assert set(open_checkpoint(tmp_path).names()) == {"a", "b"}
    save(tmp_path / "part3.safetensors", {"a": A})
    said = refusal(tmp_path)
    assert "part1.safetensors" in said
    assert "part3.safetensors" in said


def test_no_weights_lists_the_folder(tmp_path: Path) -> None:
    assert "nothing" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    said = refusal(tmp_path)
    assert "config.json, training_args.bin" in said
    assert "dummy" in said
    assert "not a directory" in refusal(tmp_path / "absent")


def test_safetensors_before_bin_and_contradictions_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"t": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    caplog.set_level(logging.WARNING)
    assert open_checkpoint(tmp_path).names() == ("t",)
    for asked in ("pt", "npcache"):
        assert open_checkpoint(tmp_path, asked).names() == ("t",)
    assert not caplog.records
    assert open_checkpoint(tmp_path, "safetensors").names() == ("t",)
    assert len(caplog.records) == 1
    save(tmp_path / "model.safetensors", {"a": A})
    assert open_checkpoint(tmp_path).names() == ("a",)
    assert open_checkpoint(tmp_path, "pt").names() == ("t",)
    assert len(caplog.records) == 1
    assert open_checkpoint(tmp_path, "bitsandbytes").names() == ("a",)
    assert len(caplog.records) == 2


def test_sharded_bin(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(2).bfloat16()}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index(
        tmp_path,
        {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"},
        "pytorch_model.bin.index.json",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == {"a", "b"}
    assert checkpoint.get("b").dequantize().tolist() == [1.0, 1.0]


@pytest.mark.skipif(not ORACLES.exists(), reason="needs ../shared/oracles")
def test_oracle_checkpoints_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    checkpoint = open_checkpoint(ORACLES / "llama-f16-bin")
    wanted = torch.load(ORACLES / "llama-f16-bin/pytorch_model.bin", weights_only=True)
    assert set(checkpoint.names()) == set(wanted)
    for name, tensor in wanted.items():
        assert checkpoint.get(name).dtype == "float16"
        assert np.array_equal(checkpoint.get(name).data, tensor.numpy())
    from safetensors.torch import load_file

    checkpoint = open_checkpoint(ORACLES / "llama-sharded")
    shards = sorted((ORACLES / "llama-sharded").glob("*.safetensors"))
    wanted = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert set(checkpoint.names()) == set(wanted)
    for name, tensor in wanted.items():
        assert np.array_equal(checkpoint.get(name).dequantize(), tensor.float().numpy())
