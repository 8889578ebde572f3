"""`octavo convert`: what stands in the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.cli.main import run
from octavo.convert.gguf import convert
from octavo.convert.gguf_file import Tensor, write_gguf
from octavo.errors import ConfigError, UnsupportedModel
from octavo.weights.ggml import NAMED

SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "data" / "weights" / "stories260k"
ORACLES = SHARED / "oracles" / "models"

stories = pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data")
oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason="no shared oracles")


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@stories
@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_the_same_tensors_as_the_gguf_packages_writer(tmp_path: Path, outtype: str) -> None:
    convert(STORIES, tmp_path / "new.gguf", outtype)
    theirs = tensors(STORIES / f"stories260k-{outtype.upper()}.gguf")
    ours = tensors(tmp_path / "new.gguf")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert ours[name].shape.tolist() == tensor.shape.tolist(), name
        assert np.array_equal(ours[name].data, tensor.data), name


@stories
def test_the_same_shape_and_tokens_as_theirs(tmp_path: Path) -> None:
    convert(STORIES, tmp_path / "new.gguf")
    theirs, ours = fields(STORIES / "stories260k-F32.gguf"), fields(tmp_path / "new.gguf")
    apart = {"GGUF.kv_count", "general.name", "tokenizer.ggml.scores"}
    for key in theirs.keys() - apart:
        assert ours[key] == theirs[key], key


@oracles
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama", {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}),
        ("qwen2", {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}),
        ("gpt2", {"general.architecture": "gpt2", "gpt2.attention.layer_norm_epsilon": 1e-5}),
        ("phi3", {"phi3.attention.sliding_window": 24}),
        ("gemma3_text", {"gemma3.rope.freq_base_swa": 10000.0, "gemma3.rope.scaling.type": "linear"}),
    ],
)
def test_families(tmp_path: Path, name: str, keys: dict[str, Any]) -> None:
    report = convert(ORACLES / name, tmp_path / "new.gguf", "q8_0")
    found = fields(tmp_path / "new.gguf")
    for key, value in keys.items():
        assert found[key] == pytest.approx(value), key
    assert report.nbytes == (tmp_path / "new.gguf").stat().st_size
    config = json.loads((ORACLES / name / "config.json").read_text())
    assert len(found["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert len(found["tokenizer.ggml.token_type"]) == config["vocab_size"]
    assert (
        found["tokenizer.chat_template"]
        == json.loads((ORACLES / name / "tokenizer_config.json").read_text())["chat_template"]
    )


@oracles
def test_norms_of_gemma_come_with_their_one(tmp_path: Path) -> None:
    from octavo.weights.checkpoint import open_checkpoint

    convert(ORACLES / "gemma3_text", tmp_path / "new.gguf", "f32")
    checkpoint = open_checkpoint(ORACLES / "gemma3_text")
    stored = checkpoint.get("model.layers.0.input_layernorm.weight").dequantize()
    assert np.array_equal(tensors(tmp_path / "new.gguf")["blk.0.attn_norm.weight"].data, stored + 1)


def test_a_dummy_of_whole_words_has_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 40,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "torch_dtype": "bfloat16",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(40)}, "unk_token": "w0"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": words})
    )
    convert(tmp_path, tmp_path / "new.gguf", "q4_k_m", dummy=True)
    assert fields(tmp_path / "new.gguf")["tokenizer.ggml.model"] == "no_vocab"
    found = tensors(tmp_path / "new.gguf")
    assert found["rope_freqs.weight"].data[0] == 1
    assert found["rope_freqs.weight"].data[-1] == pytest.approx(8.0)
    assert found["blk.0.attn_q.weight"].tensor_type.name == "Q5_0"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "--help"]) == 0
    assert "--outtype" in capsys.readouterr().out
    assert run(["convert", str(tmp_path)]) == 2
    assert "SRC and DST" in capsys.readouterr().err
    assert run(["convert", "a", "b", "--outtype", "q9"]) == 1
    assert "there is no 'q9'" in capsys.readouterr().err
    assert run(["convert", "a", "b", "--port", "1"]) == 2
    assert "no flag --port" in capsys.readouterr().err


@oracles
def test_command_line_writes_and_does_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(ORACLES / "qwen3"), str(tmp_path), "--to", "gguf", "--outtype", "q4_0"]
    assert run(words) == 0
    assert "qwen3-q4_0.gguf" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3-q4_0.gguf"]
    assert run(words) == 1
    assert "exists" in capsys.readouterr().err


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="quantized"):
        convert(tmp_path, tmp_path / "new.gguf")


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    def fail() -> Any:
        yield np.zeros(16, np.uint8)
        raise ConfigError("the source broke")

    with pytest.raises(ConfigError, match="source broke"):
        write_gguf(tmp_path / "x.gguf", {}, [Tensor("a", (8,), NAMED["F32"], fail)])
    assert not list(tmp_path.iterdir())


def test_memory_stays_small(tmp_path: Path) -> None:
    """A tensor of 64 MB goes through in pieces."""
    import tracemalloc

    piece = np.zeros((256, 1024), np.float32)
    tensor = Tensor("a", (256 * 64, 1024), NAMED["F32"], lambda: (piece for _ in range(64)))
    tracemalloc.start()
    write_gguf(tmp_path / "x.gguf", {}, [tensor])
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
