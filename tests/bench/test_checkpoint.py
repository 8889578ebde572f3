"""Checkpoints that the benchmark writes for other engines: Octavo loads them, and their numbers are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from octavo.bench import checkpoint, forms
from octavo.bench.checkpoint import tensor_shapes, write_tokenizer
from octavo.bench.peers import Work
from octavo.bench.shapes import SHAPES
from octavo.config.arch import read_arch
from octavo.errors import ConfigError
from octavo.weights.checkpoint import open_checkpoint

SMALL = {
    **SHAPES["qwen2.5-0.5b"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A written checkpoint of a small shape."""
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setattr(checkpoint, "kept", lambda: tmp_path)
    monkeypatch.setattr(forms, "kept", lambda: tmp_path)
    return checkpoint.random_checkpoint("small")


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_has_its_tensors(name: str) -> None:
    from octavo.build.declare import declare

    decoder = declare(read_arch(SHAPES[name], {}))
    declared = sum(int(np.prod(param.shape)) for _, param in decoder.named_params())
    assert sum(int(np.prod(shape)) for _, shape in tensor_shapes(SHAPES[name])) == declared


def test_octavo_loads_what_was_written(small: Path) -> None:
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    from octavo import launch
    from octavo.config.engine import EngineConfig

    launched = launch.build(EngineConfig(model=str(small), quiet=True, max_model_len=64, threads=1))
    assert launched.arch.vocab == 512
    assert checkpoint.random_checkpoint("small") == small
    assert not list(small.parent.glob("*.part"))


def test_a_tokenizer_of_any_size(tmp_path: Path) -> None:
    for size in (300, 70_000):
        write_tokenizer(tmp_path, size)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert tokenizer.get_vocab_size() == size
        assert tokenizer.decode(tokenizer.encode("Hello there, über 12!").ids) == "Hello there, über 12!"
    assert len(tokenizer.encode("the").ids) == 2


def work(model: Path, bits: int) -> Work:
    return Work(model, "bfloat16", bits, 1, 512)


def test_w8a8(small: Path) -> None:
    folder, label = forms.form("vllm", work(small, 8))
    assert label == "W8A8"
    assert (
        json.loads((folder / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    )
    dense, found = open_checkpoint(small), open_checkpoint(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    codes, scale = found.get(name), found.get(f"{name}_scale").dequantize()
    np.testing.assert_allclose(codes.data * scale, dense.get(name).dequantize(), atol=float(scale.max()))
    assert (found.get("model.norm.weight").data == dense.get("model.norm.weight").data).all()


def test_gptq(small: Path) -> None:
    folder, label = forms.form("vllm", work(small, 4))
    assert label == "GPTQ int4"
    dense, found = open_checkpoint(small), open_checkpoint(folder)
    stem = "model.layers.0.mlp.down_proj."
    words = found.get(f"{stem}qweight").data.view(np.uint32)
    codes = ((words[:, None, :] >> (4 * np.arange(8, dtype=np.uint32))[None, :, None]) & 15).reshape(256, 128)
    scales = np.repeat(found.get(f"{stem}scales").dequantize(), 128, axis=0)
    wanted = dense.get(f"{stem}weight").dequantize().T
    np.testing.assert_allclose((codes.astype(np.float32) - 8) * scales, wanted, atol=float(scales.max()))
    assert found.get(f"{stem}qzeros").data.shape == (2, 16)


def test_forms(small: Path, tmp_path: Path) -> None:
    assert forms.form("vllm", work(small, 16)) == (small, "bfloat16")
    assert forms.form("transformers", work(small, 4)) == (small, "bfloat16")
    (small / "config.json").write_text(json.dumps({**SMALL, "quantization_config": {}}))
    with pytest.raises(ConfigError, match="quantized already"):
        forms.form("vllm", work(small, 8))
