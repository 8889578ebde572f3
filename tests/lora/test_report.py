"""`octavo inspect` of an adapter: what it is, whether it can be served, and on which base."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_cases import ALL, LAYERS, write_adapter
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "weights"))

from fake_site import FakeSite

from octavo.cli.main import run
from octavo.config.engine import EngineConfig
from octavo.inspection import inspect
from octavo.lora.report import AdapterReport


def report(folder: Path | str, base: Path | None = None, **more: Any) -> AdapterReport:
    found = inspect(EngineConfig(model=str(folder), **more), str(base) if base else None)
    assert isinstance(found, AdapterReport)
    return found


def test_what_it_is(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, [*ALL, "lm_head"], use_rslora=True, lora_alpha=6)
    for against in (None, base):
        found = report(folder, against)
        assert found.runs, found.why_not
        assert (found.rank, found.alpha, found.kinds) == (4, 6.0, ["rsLoRA"])
        assert found.modules == {**dict.fromkeys(sorted(ALL), LAYERS), "lm_head": 1}
        tensors = load_file(folder / "adapter_model.safetensors")
        assert found.parameters == sum(tensor.size for tensor in tensors.values())
        assert found.dtypes == ["float32"]
        assert found.checked_against == (str(base) if against else None)


def test_its_own_base_is_looked_at_where_it_is_here(base: Path, tmp_path: Path) -> None:
    for number, (named, expected) in enumerate(((str(base), str(base)), ("org/elsewhere", None))):
        folder = write_adapter(tmp_path / str(number), 1, 4, ALL, base_model_name_or_path=named)
        found = report(folder)
        assert (found.runs, found.base, found.checked_against) == (True, named, expected)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"r": 8}, r"expected \[8,|takes \[8,"),
        ({"r": 9999}, "more than the 256"),
        ({"target_modules": ["nothing"]}, "holds no LoRA weights"),
    ],
)
def test_why_not(said: dict[str, Any], why: str, base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"], **said)
    for against in (None, base):
        found = report(folder, against)
        assert not found.runs
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(found.why_not)
        assert (found.rank, found.modules) == (4, {"q_proj": LAYERS})


def test_damaged_files(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, file)
    for against in (None, base):
        assert "lora_B" in str(report(folder, against).why_not)
    file.write_bytes(b"short")
    assert "adapter_model.safetensors" in str(report(folder).why_not)
    file.unlink()
    assert "No adapter found" in str(report(folder).why_not)
    (folder / "adapter_config.json").write_text("{")
    assert "not valid JSON" in str(report(folder).why_not)


def test_another_base(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"])
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "c_attn"): tensor for name, tensor in load_file(file).items()}, file)
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, "target_modules": ["c_attn"]}))
    assert report(folder).runs, "nothing is wrong with it by itself"
    assert "no plain matrices of this model" in str(report(folder, base).why_not)


def test_from_a_url(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"])
    site = FakeSite()
    try:
        site.pages = {f"/a/{path.name}": path.read_bytes() for path in folder.iterdir()}
        found = report(f"{site.url}/a", base)
        assert found.runs, found.why_not
        assert found.modules == {"q_proj": LAYERS}
    finally:
        site.close()


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(tmp_path / "a", 1, 4, ["q_proj"], base_model_name_or_path="org/base")
    assert run(["inspect", str(folder)]) == 0
    page = capsys.readouterr().out
    assert "a LoRA adapter for org/base" in page
    assert "rank            4, alpha 4\n" in page
    assert "name it with --base" in page
    assert run(["inspect", str(folder), "--base", str(base), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["runs"], said["checked_against"]) == (True, str(base))
