"""GGUF back to a Hugging Face folder: the tensors of the checkpoint that the file was made from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from family_cases import Case, make
from test_roundtrip import REFUSED, WITHOUT_DYNAMIC, logits, with_tokenizer

from octavo.build.source import open_source
from octavo.cli.main import run
from octavo.convert.gguf import convert
from octavo.convert.safetensors import to_safetensors
from octavo.convert.safetensors_file import Piece, write_weights
from octavo.errors import CheckpointError, ConfigError, UnsupportedModel
from octavo.pipeline.vocab import read_json
from octavo.weights.checkpoint import open_checkpoint

CONVERTIBLE = [case for case in WITHOUT_DYNAMIC if case.name not in REFUSED and case.kind != "GptOss"]
TINY = Case("llama-there-and-back", "Llama", {"num_hidden_layers": 2})


def tensors(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.get(name).dequantize() for name in checkpoint.names()}


@pytest.mark.parametrize("case", CONVERTIBLE, ids=lambda case: case.name)
def test_there_and_back(case: Case, tmp_path: Path) -> None:
    made = with_tokenizer(make(case, tmp_path).folder)
    convert(made, tmp_path / "model.gguf", "f32")
    to_safetensors(tmp_path / "model.gguf", tmp_path / "back", "f32")
    before, after = tensors(made), tensors(tmp_path / "back")
    gemma = "gemma" in case.name.lower()
    for name, values in after.items():
        old = next((before[old] for old in (name, name.removeprefix("transformer.")) if old in before), None)
        assert old is not None, name
        if gemma and "norm" in name:
            # The file holds the norms with 1 added, rounded to float32.
            np.testing.assert_allclose(values, old, atol=1.2e-7)
        else:
            np.testing.assert_array_equal(values, old, err_msg=name)
    expected = logits(open_source(made, read_json))
    found = logits(open_source(tmp_path / "back", read_json))
    assert np.abs(found - expected).max() <= 2e-5 * max(1.0, float(expected.std()))


def test_experts_that_are_kept_otherwise_are_refused(tmp_path: Path) -> None:
    case = next(case for case in WITHOUT_DYNAMIC if case.kind == "GptOss")
    made = with_tokenizer(make(case, tmp_path).folder)
    convert(made, tmp_path / "model.gguf", "f32")
    with pytest.raises(UnsupportedModel, match="experts are kept otherwise"):
        to_safetensors(tmp_path / "model.gguf", tmp_path / "back", "f32")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma2", "Gemma3", "Phi3", "GPT2"])
def test_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    case = next(case for case in CONVERTIBLE if case.kind == kind)
    made = make(case, tmp_path)
    with_tokenizer(made.folder)
    convert(made.folder, tmp_path / "model.gguf", "f32")
    to_safetensors(tmp_path / "model.gguf", tmp_path / "back", "f32")
    ids = torch.arange(3, 40)[None]
    found = []
    for folder in (made.folder, tmp_path / "back"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            found.append(model(ids).logits.numpy())
    np.testing.assert_allclose(found[1], found[0], atol=2e-5 * max(1.0, float(found[0].std())))


def test_quantized_types_are_written_as_what_they_stand_for(tmp_path: Path) -> None:
    made = with_tokenizer(make(TINY, tmp_path).folder)
    convert(made, tmp_path / "model.gguf", "q8_0")
    to_safetensors(tmp_path / "model.gguf", tmp_path / "back", "f32")
    found = logits(open_source(tmp_path / "back", read_json))
    expected = logits(open_source(tmp_path / "model.gguf", read_json))
    assert np.abs(found - expected).max() <= 2e-5 * max(1.0, float(expected.std()))


def test_another_dtype_and_other_files(tmp_path: Path) -> None:
    made = with_tokenizer(make(TINY, tmp_path).folder)
    assert run(["convert", str(made), str(tmp_path / "half"), "--to", "safetensors", "--outtype", "f16"]) == 0
    before, after = tensors(made), tensors(tmp_path / "half")
    assert before.keys() == after.keys()
    for name, values in after.items():
        np.testing.assert_array_equal(values, before[name].astype(np.float16).astype(np.float32))
    assert (tmp_path / "half" / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert "float16" in (config.get("dtype"), config.get("torch_dtype"))


def test_pickled_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = with_tokenizer(make(TINY, tmp_path).folder)
    before = tensors(made)
    for path in made.glob("*.safetensors"):
        path.unlink()
    whole = {name: torch.tensor(values).bfloat16() for name, values in before.items()}
    torch.save(whole, made / "pytorch_model.bin")
    written = to_safetensors(made, tmp_path / "out")
    assert written.types.keys() == {"bfloat16"}
    for name, values in tensors(tmp_path / "out").items():
        np.testing.assert_array_equal(values, whole[name].float().numpy())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--outtype", "q4_0"], "written as auto, f32, f16, bf16"),
        (["--to", "gguf"], "is a GGUF file already"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(with_tokenizer(make(TINY, tmp_path).folder), tmp_path / "a.gguf", "f32")
    assert run(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "out"), *words]) == 1
    assert said in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert run(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "out")]) == 1
    assert "exists" in capsys.readouterr().err


def test_a_number_that_float16_lacks(tmp_path: Path) -> None:
    made = with_tokenizer(make(TINY, tmp_path).folder)
    whole = {name: values.copy() for name, values in tensors(made).items()}
    name = next(name for name in whole if name.endswith("down_proj.weight"))
    whole[name] = whole[name] + np.float32(1e6)
    pieces = [Piece(n, "float32", v.shape, lambda v=v: iter([v])) for n, v in whole.items()]
    write_weights(made, pieces)
    with pytest.raises(CheckpointError, match="largest float16 is 65504"):
        to_safetensors(made, tmp_path / "out", "f16")
    assert not list(tmp_path.glob("out*"))


def test_shards_and_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [np.arange(100, dtype=np.float32) + i for i in range(3)]
    pieces = [Piece(f"t{i}", "float32", (100,), lambda v=v: iter([v])) for i, v in enumerate(values)]
    written = write_weights(tmp_path, pieces, shard_bytes=800)
    assert (written.nbytes, written.tensors) == (1200, 3)
    assert len(list(tmp_path.glob("model-0000?-of-00002.safetensors"))) == 2
    found = tensors(tmp_path)
    for i, expected in enumerate(values):
        np.testing.assert_array_equal(found[f"t{i}"], expected)

    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(ConfigError, match="take 1,200 bytes, but 1,000 are free"):
        write_weights(tmp_path, pieces)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from octavo.launch import POCKET

    convert(POCKET, tmp_path / "pocket.gguf", "bf16")
    to_safetensors(tmp_path / "pocket.gguf", tmp_path / "back")
    before, after = tensors(POCKET), tensors(tmp_path / "back")
    for name, values in after.items():
        np.testing.assert_array_equal(values, before[name])
    old, new = (transformers.AutoTokenizer.from_pretrained(f) for f in (POCKET, tmp_path / "back"))
    for text in ("Once upon a time, 1234 birds", "  def f(x):\n\treturn x", "süß 日本 🙂"):
        assert new(text).input_ids == old(text).input_ids
    chat: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert new.apply_chat_template(chat, **options) == old.apply_chat_template(chat, **options)
