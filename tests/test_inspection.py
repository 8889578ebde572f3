"""`octavo inspect`: what the headers say, here and on a hub, and why a model does not run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "weights"))
sys.path.insert(0, str(Path(__file__).parent / "models"))
from fake_hub import FakeHub
from fake_site import FakeSite
from family_cases import Case, make
from writers import encode

from octavo.cli.main import run
from octavo.config.engine import EngineConfig
from octavo.convert.gguf import convert
from octavo.errors import CheckpointError
from octavo.inspection import Report, inspect
from octavo.weights.hub import resolve_model

NAME = "org/tiny"
ENCODER = Path(__file__).parents[2] / "shared/oracles/pooling/bert-embed-cls"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make(Case("llama-inspected", "Llama", SIZES), tmp_path_factory.mktemp("inspected")).folder
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(97)}, "unk_token": "w0"}
    (made / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub(NAME, {})
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OCTAVO_USE_MODELSCOPE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.close()


def config(model: object, **more: Any) -> EngineConfig:
    return EngineConfig(model=str(model), **more)


def facts(report: Report) -> tuple[object, ...]:
    return (report.architecture, report.parameters, report.groups, report.runs, report.why_not)


def test_a_folder(folder: Path) -> None:
    report = inspect(config(folder))
    assert report.runs, report.why_not
    assert (report.family, report.tokenizer, report.chat_template) == (
        "llama",
        "tokenizer.json",
        "chat_template.jinja",
    )
    stored = sum(group.bytes for group in report.groups)
    assert 0 < stored < sum(report.files.values())
    assert {group.bits_per_weight for group in report.groups} <= {16.0, 32.0}
    assert sum(group.weights for group in report.groups) == report.parameters == report.active_parameters
    memory = report.memory
    assert memory is not None
    assert memory.total == memory.weights + memory.process + memory.kv
    assert memory.largest_context == report.context_limit


def test_memory_follows_the_flags(folder: Path) -> None:
    plain = inspect(config(folder, max_model_len=64)).memory
    small = inspect(config(folder, max_model_len=32, kv_cache_dtype="fp8", quantization="int4")).memory
    assert plain is not None
    assert small is not None
    assert small.kv * 4 == plain.kv
    assert small.weights < plain.weights


def test_a_hub_model_costs_its_headers_only(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    weights = next(name for name in hub.files if name.endswith(".safetensors"))
    header = 8 + int.from_bytes(hub.files[weights][:8], "little")
    padded = hub.files[weights][:header] + bytes(8 << 20)
    local = facts(inspect(config(folder)))
    hub.files[weights] = padded
    report = inspect(config(NAME, download_dir=str(tmp_path)))
    assert facts(report) == local
    assert report.files == {weights: len(padded)}
    assert hub.sent_bytes < 1 << 20


def test_weights_that_are_in_the_cache_stay_as_they_are(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    cached = resolve_model(NAME, download_dir=str(tmp_path), quiet=True)
    assert inspect(config(NAME, download_dir=str(tmp_path))).runs
    for name, content in hub.files.items():
        assert (cached / name).read_bytes() == content


@pytest.mark.skipif(not ENCODER.is_dir(), reason="no shared data")
def test_a_hub_encoder(hub: FakeHub, tmp_path: Path) -> None:
    """What sentence-transformers keeps in folders of its own is read, too."""
    files = [path for path in ENCODER.rglob("*") if path.is_file()]
    hub.files = {str(path.relative_to(ENCODER)): path.read_bytes() for path in files}
    report = inspect(config(NAME, download_dir=str(tmp_path)))
    assert report.runs, report.why_not
    assert facts(report) == facts(inspect(config(ENCODER)))


def test_a_hub_gguf(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    convert(folder, tmp_path / "tiny-Q8_0.gguf", "q8_0")
    hub.files = {"tiny-Q8_0.gguf": (tmp_path / "tiny-Q8_0.gguf").read_bytes(), "README.md": b"x"}
    local = inspect(config(tmp_path / "tiny-Q8_0.gguf"))
    assert local.runs, local.why_not
    for name in (f"{NAME}:tiny-Q8_0.gguf", f"{NAME}:q8_0"):
        report = inspect(config(name))
        assert facts(report) == facts(local)
    assert any(group.format == "Q8_0" and group.bits_per_weight == 8.5 for group in report.groups)
    with pytest.raises(CheckpointError, match="Q4_K_M is no GGUF file of the repository"):
        inspect(config(f"{NAME}:Q4_K_M"))
    with pytest.raises(CheckpointError, match="1 GGUF files"):
        inspect(config(NAME))


def test_a_url(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "tiny.gguf", "q8_0")
    site = FakeSite()
    try:
        site.pages = {f"/m/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
        site.pages |= {name: (tmp_path / "tiny.gguf").read_bytes() for name in ("/tiny.gguf", "/blobs/1")}
        for path, local in (("/m", folder), ("/tiny.gguf", tmp_path / "tiny.gguf")):
            report = inspect(config(site.url + path))
            assert report.runs, report.why_not
            assert facts(report) == facts(inspect(config(local)))
            assert report.model == site.url + path
        assert inspect(config(f"{site.url}/blobs/1")).storage == "GGUF", "known by its first bytes"
    finally:
        site.close()


def damaged(folder: Path, into: Path, **changes: Any) -> Path:
    into.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (into / path.name).write_bytes(path.read_bytes())
        else:
            (into / path.name).symlink_to(path)
    raw = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**raw, **changes}))
    return into


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["NovelForCausalLM"]}, "NovelForCausalLM"),
        ({"quantization_config": {"quant_method": "secret"}}, "'secret'"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"intermediate_size": 96}, r"has shape \[128, 64\], expected \[96, 64\]"),
    ],
)
def test_why_not(folder: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    report = inspect(config(damaged(folder, tmp_path / "model", **changes)))
    assert not report.runs
    assert report.why_not
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(report.why_not)
    assert report.groups


def test_too_large_for_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.config.machine.free_memory_bytes", lambda: 1 << 20)
    report = inspect(config(folder))
    assert not report.runs
    assert "GiB are free" in str(report.why_not)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(folder), "--max-model-len", "32"]) == 0
    page = capsys.readouterr().out
    assert "LlamaForCausalLM (octavo/models/llama.py)" in page
    assert "runs here       yes" in page
    assert run(["inspect", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"] is True
    assert said["memory"]["total"] > said["memory"]["weights"] > 0
    assert run(["inspect", str(folder / "nowhere")]) == 1
    assert "neither a folder or file here nor a hub id" in capsys.readouterr().err


def test_a_broken_file_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    raw = encode({"a.weight": np.zeros((2, 2), np.float32)})
    (tmp_path / "model.safetensors").write_bytes(raw[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        inspect(config(tmp_path))


FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "hqq, 4 bits, groups of 64",
    ),
    "torchao": (
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
        },
        "torchao, Int8WeightOnlyConfig",
    ),
    "modelopt": (
        {"quantization": {"quant_algo": "NVFP4", "group_size": 16}},
        "modelopt, NVFP4, groups of 16",
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "a": {"targets": ["re:.*mlp.*"], "weights": {"num_bits": 4, "group_size": 32}},
                "b": {"targets": ["Linear"], "weights": {"num_bits": 8}},
                "c": {"targets": ["Embedding"], "weights": None},
            },
        },
        "compressed-tensors, mixed",
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits, groups of 128"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    said, words = FORMATS[name]
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if name == "modelopt":
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    else:
        raw = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": said}))
    assert inspect(config(tmp_path)).quantization == words
