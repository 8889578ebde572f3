"""llama.cpp itself, where OCTAVO_LLAMA_CPP names its programs' folder: each reads what the other writes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
from family_cases import CASES, Case, make
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

TOKENIZER = STORIES.parents[2] / "oracles/tokenizer"
COMPUTED = (
    "llama",
    "llama-tied-biased",
    "llama-head80",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "qwen2",
    "qwen3",
    "mistral-full",
    "phi3-partial",
    "gemma-says-gelu",
    "granite",
    "stablelm",
    "stablelm-parallel",
    "cohere",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "gpt2",
)
"""Families and variants that llama.cpp computes as transformers does; of the others `convert` warns."""


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


@contextmanager
def llama_server(file: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["-m", str(file), "-c", "256", "-t", "2", "-np", "1", "--no-warmup", "-fa", "off"]
    words += ["-ctk", "f32", "-ctv", "f32", "--port", port]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([PROGRAMS / "llama-server", *words], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_for(client, server, tmp_path / "server.log")
            yield client
    finally:
        server.kill()
        server.wait()


def wait_for(client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and server.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
    raise AssertionError(log.read_text()[-2000:])


@pytest.mark.skipif(not (PROGRAMS / "llama-server").is_file(), reason="there is no llama-server")
@pytest.mark.parametrize("name", COMPUTED)
def test_llama_cpp_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    import torch

    case = next(case for case in CASES if case.name == name)
    made = make(replace(case, config={**case.config, "vocab_size": 1258}), tmp_path)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, made.folder)
    convert(made.folder, tmp_path / "model.gguf", "f32")
    model, compared = made.model.float().eval(), 0
    with llama_server(tmp_path / "model.gguf", tmp_path) as client:
        for length in (4, 7, 20, 40, 60):
            ids = [int(i) for i in np.random.default_rng(length).integers(0, 1000, length)]
            asked: dict[str, Any] = {"prompt": ids, "n_predict": 1, "n_probs": 10, "temperature": -1}
            reply = client.post("/completion", json={**asked, "cache_prompt": False}).json()
            if "completion_probabilities" not in reply:  # it ends at once where a special token is the best
                continue
            with torch.no_grad():
                wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            for found in reply["completion_probabilities"][0]["top_logprobs"]:
                assert abs(found["logprob"] - float(wanted[found["id"]])) < 0.02
            compared += 1
    assert compared
