"""Every encoder and head against transformers, on every backend. Tolerances: see test_families.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequence, make_batch
from encoder_cases import CASES, VOCAB, Case, Made, make
from numpy.typing import NDArray

from octavo.build.bind import bind as bind_model
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.config.arch import read_arch
from octavo.config.pooling import Pooler, folder_reader, read_pooler
from octavo.ops.contract import Limits, Precision, Runnable
from octavo.weights.checkpoint import open_checkpoint

CLOSE = 1e-4
LIMITS = Limits(tokens=256, sequences=8, logit_rows=256, block_size=16, max_model_len=96)
PROMPTS = [[int(t) for t in np.random.default_rng(n).integers(2, VOCAB, n)] for n in (1, 7, 61)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Case], Made]]:
    cases: dict[str, Made] = {}

    def get(case: Case) -> Made:
        if case.name not in cases:
            cases[case.name] = make(case, tmp_path_factory.mktemp(case.name))
        return cases[case.name]

    yield get
    cases.clear()


def bound(made: Made, backend: str) -> tuple[Runnable, Pooler]:
    config = json.loads((made.folder / "config.json").read_text())
    arch = read_arch(config)
    pooler = read_pooler(config, arch.architecture, folder_reader(made.folder))
    assert pooler is not None
    model = declare(arch, pooler=pooler)
    tensors = load(model, open_checkpoint(made.folder), "float32")
    runnable = bind_model(model, tensors, Precision(), LIMITS, backend)
    runnable.allocate_cache(24)
    return runnable, pooler


def run(
    model: Runnable, pooler: Pooler, prompts: list[list[int]], types: Any = None
) -> list[NDArray[np.float32]]:
    """What each prompt gets: all rows of a bare model and of a classifier of tokens, else the pooled one."""
    free = list(range(23, -1, -1))
    work = []
    for prompt in prompts:
        table = [free.pop() for _ in range(-(-len(prompt) // 16))]
        work.append((Sequence(prompt, len(prompt), table), len(prompt)))
    every = pooler.of_tokens or pooler.kind == "embed"
    batch = make_batch(work, every)
    starts, ends = batch.seq_starts[:-1], batch.seq_starts[1:] - 1
    if not every:
        firsts = starts if pooler.rows != "last" else ends
        batch = replace(batch, logit_rows=starts if pooler.rows == "cls" else ends, logit_firsts=firsts)
    if types is not None:
        batch = replace(batch, token_types=np.array(types, np.int32))
    out = np.array(model.forward(batch))
    return [
        out[a : b + 1] if every else out[i : i + 1] for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_transformers(case: Case, made: Callable[[Case], Made], backend: str) -> None:
    checkpoint = made(case)
    model, pooler = bound(checkpoint, backend)
    together = run(model, pooler, PROMPTS)
    for prompt, got in zip(PROMPTS, together, strict=True):
        expected = checkpoint.rows(prompt)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= CLOSE * max(1.0, float(expected.std()))
        alone = run(model, pooler, [prompt])[0]
        if backend == "native":
            np.testing.assert_array_equal(alone, got)


@pytest.mark.parametrize("name", ["bert-labels", "nomic"])
def test_the_second_text_of_a_pair(name: str, made: Callable[[Case], Made], backend: str) -> None:
    checkpoint = made(next(case for case in CASES if case.name == name))
    model, pooler = bound(checkpoint, backend)
    types = [0] * 20 + [1] * 41
    got = run(model, pooler, [PROMPTS[2]], types)[0]
    expected = checkpoint.rows(PROMPTS[2], types)
    assert np.abs(got - expected).max() <= CLOSE * max(1.0, float(expected.std()))
    assert np.abs(got - checkpoint.rows(PROMPTS[2])).max() > 1e-2


def as_published(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """transformers' tensors under the names of the models' first code: fused, in its order."""
    import torch

    out: dict[str, Any] = {}
    layer, norm = (
        ("encoder.layers", ("norm1", "norm2"))
        if name == "nomic"
        else ("encoder.layer", ("attn_ln", "mlp_ln"))
    )
    fused = "attn.Wqkv" if name == "nomic" else "attention.qkv_proj"
    renamed = {
        "self_attn.o_proj": "attn.out_proj" if name == "nomic" else "attention.o_proj",
        "post_attention_layernorm": norm[0],
        "post_mlp_layernorm": norm[1],
        **(
            {"mlp.gate_proj": "mlp.fc12", "mlp.up_proj": "mlp.fc11", "mlp.down_proj": "mlp.fc2"}
            if name == "nomic"
            else {}
        ),
        **({"embeddings.LayerNorm": "emb_ln"} if name == "nomic" else {}),
    }
    for key, tensor in state.items():
        if ".k_proj" in key or ".v_proj" in key or (name == "gte" and ".gate_proj" in key):
            continue
        if ".q_proj" in key:
            tensor = torch.cat([state[key.replace(".q_", f".{part}_")] for part in "qkv"])
            key = key.replace("self_attn.q_proj", fused)
        if name == "gte" and ".up_proj" in key:
            tensor = torch.cat([tensor, state[key.replace(".up_", ".gate_")]])
            key = key.replace(".up_proj", ".up_gate_proj")
        for old, new in renamed.items():
            key = key.replace(old, new)
        out[key.replace("layers.", f"{layer}.", 1) if key.startswith("layers.") else key] = (
            tensor.contiguous()
        )
    return out


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", ["nomic", "gte"])
def test_both_spellings(name: str, published: bool, made: Callable[[Case], Made], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint = made(next(case for case in CASES if case.name == name))
    state = dict(checkpoint.model.state_dict())
    save_file(as_published(name, state) if published else state, tmp_path / "model.safetensors")
    config = json.loads((checkpoint.folder / "config.json").read_text())
    if published and name == "gte":
        config["architectures"] = ["NewModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, pooler = bound(replace(checkpoint, folder=tmp_path), "native")
    expected = checkpoint.rows(PROMPTS[1])
    assert np.abs(run(model, pooler, [PROMPTS[1]])[0] - expected).max() <= CLOSE
