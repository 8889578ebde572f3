"""llama.cpp itself, where OCTAVO_LLAMA_CPP names its programs' folder: each reads what the other writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from octavo.build.source import open_source
from octavo.convert.gguf import convert
from octavo.pipeline.vocab import read_json

PROGRAMS = Path(os.environ.get("OCTAVO_LLAMA_CPP", "/nowhere"))
STORIES = Path(__file__).parents[3] / "shared/data/weights/stories260k"

pytestmark = [
    pytest.mark.skipif(not (PROGRAMS / "llama-bench").is_file(), reason="OCTAVO_LLAMA_CPP is not set"),
    pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data"),
]


def run(program: str, *words: str) -> None:
    done = subprocess.run([PROGRAMS / program, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_0", "q4_k_m"])
def test_llama_cpp_reads_what_convert_writes(kind: str, tmp_path: Path) -> None:
    convert(STORIES, tmp_path / "model.gguf", kind)
    run("llama-bench", "-m", str(tmp_path / "model.gguf"), "-p", "8", "-n", "4", "-r", "1", "-t", "1")


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_1", "Q6_K"])
def test_what_llama_cpp_quantizes_is_read(kind: str, tmp_path: Path) -> None:
    convert(STORIES, tmp_path / "model.gguf", "f32")
    run("llama-quantize", str(tmp_path / "model.gguf"), str(tmp_path / "small.gguf"), kind, "1")
    plain, small = (open_source(tmp_path / f"{name}.gguf", read_json) for name in ("model", "small"))
    names = sorted(plain.checkpoint().names())
    assert sorted(small.checkpoint().names()) == names
    for name in (name for name in names if "ffn_up" in name):
        wanted, found = (source.checkpoint().get(name).dequantize() for source in (plain, small))
        assert abs(found - wanted).mean() < 0.1 * abs(wanted).mean()
