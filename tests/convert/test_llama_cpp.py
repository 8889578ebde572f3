"""llama.cpp itself, where OCTAVO_LLAMA_CPP names its programs' folder: each reads what the other writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from family_cases import Case, make
from test_roundtrip import with_tokenizer

from octavo.build.source import open_source
from octavo.convert.ggml_types import MIXES
from octavo.convert.gguf import convert
from octavo.pipeline.vocab import read_json
from octavo.weights.gguf import GgufFile

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


@pytest.mark.parametrize("experts", [0, 8])
@pytest.mark.parametrize("kind", sorted(set(MIXES) - {"f32", "f16", "bf16"}))
def test_quantized_as_llama_cpp_does(kind: str, experts: int, tmp_path: Path) -> None:
    """The same type for every tensor, and no larger an error than llama.cpp's own quantizer makes."""
    config = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 9,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    if experts:
        config |= {"num_local_experts": experts, "num_hidden_layers": 2}
    case = Case(f"quantized-{experts}", "Mixtral" if experts else "Llama", config)
    folder = with_tokenizer(make(case, tmp_path).folder)
    for outtype in ("f32", kind):
        convert(folder, tmp_path / f"{outtype}.gguf", outtype)
    words = (str(tmp_path / "f32.gguf"), str(tmp_path / "theirs.gguf"), kind.upper(), "1")
    run("llama-quantize", *words)
    plain, ours, theirs = (GgufFile(tmp_path / f"{name}.gguf") for name in ("f32", kind, "theirs"))
    assert types(ours) == types(theirs)
    for name in plain.entries:
        exact, *errors = (dequantized(one, name) for one in (plain, ours, theirs))
        ours_off, theirs_off = (np.square(found - exact).mean() for found in errors)
        assert ours_off <= 1.04 * theirs_off, (name, ours_off, theirs_off)


def types(file: GgufFile) -> dict[str, str]:
    return {name: entry.type.name for name, entry in file.entries.items()}


def dequantized(file: GgufFile, name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[file.entries[name].type.name]
    return gguf.dequantize(file.raw(name), kind)
