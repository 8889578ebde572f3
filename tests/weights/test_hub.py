from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.errors import CheckpointError, ConfigError
from octavo.weights.hub import find_modelscope_cache, resolve_model

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub

NAME = "org/tiny-0.5B"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "chat_template.jinja": b"x",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"old",
    "consolidated.safetensors": b"twice",
    "README.md": b"text",
    "onnx/config.json": b"other",
}
NAMES = ("a/b.git", "a/b--c", "a/b\n", "a\0b", "C:\\m", "a/.b", "http://x/y", "x" * 200, "x" * 3000)
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub(NAME, dict(FILES))
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "OCTAVO_USE_MODELSCOPE",
        "VLLM_USE_MODELSCOPE",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    yield server
    server.close()


def fetch(cache: Path, name: str = NAME, **options: object) -> Path:
    return resolve_model(name, download_dir=str(cache), quiet=True, **options)  # type: ignore[arg-type]


def refusal(cache: Path, name: str = NAME, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(cache, name, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_local_paths_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Qwen2___5-0___5B"
    folder.mkdir()
    assert resolve_model(str(folder)) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/Qwen2___5-0___5B") == folder
    (folder / "m.gguf").write_bytes(b"x")
    assert resolve_model(str(folder / "m.gguf")) == folder / "m.gguf"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Qwen2___5-0___5B") == Path("Qwen2___5-0___5B")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "./absent",
        "/absent/model",
        "~/absent",
        "~nobody-here/x",
        "a/b/c",
        "../x",
        "a/../b",
        "a b",
        "a\\b",
        *NAMES,
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a folder or file here nor a hub id"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main", "Give the id alone: Qwen/Qwen2.5-0.5B."),
        ("https://www.modelscope.cn/models/qwen/qwen2-0.5b", "Give the id alone: qwen/qwen2-0.5b."),
        ("llama3.2:1b", "Names of Ollama's library are not known here"),
        ("./absent", "Give the path of a model folder"),
    ],
)
def test_what_to_type_instead(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)):
        resolve_model(name)


@pytest.mark.parametrize("revision", ["", "../x", "a b", "/etc", "-x"])
def test_what_is_no_revision(revision: str) -> None:
    with pytest.raises(ConfigError, match="not a revision"):
        resolve_model(NAME, revision=revision)


def test_a_download_takes_only_what_is_needed(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(tmp_path)
    assert below(folder) == WANTED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    hub.asked.clear()
    assert fetch(tmp_path) == folder
    assert not any(path.endswith("model.safetensors") for path in hub.asked)


def test_without_safetensors_the_bin_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]
    assert below(fetch(tmp_path)) == {*WANTED, "pytorch_model.bin"} - {"model.safetensors"}


def test_a_caller_says_what_it_wants(hub: FakeHub, tmp_path: Path) -> None:
    assert below(fetch(tmp_path, allow_patterns=("tokenizer*",))) == {"tokenizer.json"}


def test_one_gguf_file_of_a_model(hub: FakeHub, tmp_path: Path) -> None:
    files = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    hub.files.update({name: name.encode() for name in files})
    whole = resolve_model(f"{NAME}:m-Q8_0.gguf", download_dir=str(tmp_path))
    assert (whole.name, below(whole.parent)) == ("m-Q8_0.gguf", {"m-Q8_0.gguf"})
    assert resolve_model(f"{NAME}:q4_k_m", download_dir=str(tmp_path / "2")).name == "m-Q4_K_M.gguf"
    first = resolve_model(f"{NAME}:{files[2]}", download_dir=str(tmp_path / "3"))
    assert below(first.parent) == set(files[2:])
    for wanted, pattern in (
        ("absent.gguf", "no file absent"),
        ("Q9", "no GGUF file with Q9"),
        ("m-", "may be"),
    ):
        with pytest.raises(CheckpointError, match=pattern):
            resolve_model(f"{NAME}:{wanted}", download_dir=str(tmp_path / "4"))


def test_the_modules_of_sentence_transformers(hub: FakeHub, tmp_path: Path) -> None:
    """Their folders come along, those that modules.json does not name stay away."""
    paths = ["", "1_Pooling", "2_Dense", "../up", 3]
    hub.files |= {
        "modules.json": json.dumps([{"path": path} for path in paths]).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"dense",
        "2_Dense/notes.txt": b"",
    }
    found = below(fetch(tmp_path))
    assert found == WANTED | {
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }
    for broken in (b"{", b"3", b"[3]", b'{"path": "onnx"}'):
        hub.files["modules.json"] = broken
        assert "model.safetensors" in below(fetch(tmp_path / broken.hex()))


def test_an_unknown_model_and_revision(hub: FakeHub, tmp_path: Path) -> None:
    assert "org/absent was not found on Hugging Face" in refusal(tmp_path, "org/absent")
    assert "--revision" in refusal(tmp_path, revision="v9")


def test_a_gated_model_says_how_to_pass_a_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    said = refusal(tmp_path)
    assert "HF_TOKEN" in said
    assert "hf_secret" not in refusal(tmp_path, hf_token="hf_wrong")
    assert below(fetch(tmp_path, hf_token="hf_secret")) == WANTED


def test_offline_uses_the_cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(tmp_path)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(tmp_path) == folder
    assert "HF_HUB_OFFLINE" in refusal(tmp_path, "org/absent")
    assert not hub.asked


def test_a_dead_hub_is_one_sentence(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(tmp_path) == folder
    assert "cannot be reached" in refusal(tmp_path / "other")


def test_no_space(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    assert "No space left" in refusal(tmp_path)


def test_the_old_modelscope_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_modelscope_cache(NAME, str(tmp_path)) is None
    for root in ("hub", "hub/models", "models"):
        folder = tmp_path / root / "org/tiny-0___5B"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert find_modelscope_cache(NAME, str(tmp_path)) == folder
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"x")
    assert resolve_model(NAME) == folder


def test_without_the_modelscope_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    monkeypatch.setenv("OCTAVO_USE_MODELSCOPE", "1")
    assert "pip install octavo[modelscope]" in refusal(tmp_path)


def test_a_modelscope_download(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope_hub")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    folder = fetch(tmp_path, use_modelscope=True)
    assert {name for name in below(folder) if not name.startswith(".")} == WANTED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "was not found on ModelScope" in refusal(tmp_path, "org/absent", use_modelscope=True)
