"""Experts in checkpoints: by themselves under every spelling, stacked, rounded, quantized, damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from held import save
from test_online import prompt_step
from tiny_model import LIMITS

from octavo.build.bind import bind
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.build.quantize import quantize, roundings
from octavo.config.arch import read_arch
from octavo.errors import CheckpointError
from octavo.ops.contract import Precision
from octavo.ops.layouts import Experts, Int4Group, Lut4, Online
from octavo.quant.small_floats import E2M1
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.dummy import DummyWeights

COUNT, HIDDEN, FFN = 5, 64, 96
SHAPE = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "num_local_experts": COUNT,
    "num_experts_per_tok": 2,
}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], **SHAPE}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], **SHAPE}
Tensors = dict[str, Any]
OLD, NEW = "model.layers.0.block_sparse_moe", "model.layers.0.mlp"


def others(gpt_oss: bool = False) -> Tensors:
    """All that is no expert."""
    rng = np.random.default_rng(3)
    sizes = {"q": (64, HIDDEN), "k": (32, HIDDEN), "v": (32, HIDDEN), "o": (HIDDEN, 64)}
    attention = "model.layers.0.self_attn"
    found = {f"{attention}.{n}_proj.weight": rng.standard_normal(s, np.float32) / 8 for n, s in sizes.items()}
    if gpt_oss:
        found |= {
            f"{attention}.{n}_proj.bias": rng.standard_normal(s[0], np.float32) for n, s in sizes.items()
        }
        found[f"{attention}.sinks"] = rng.standard_normal(4, np.float32)
        found[f"{NEW}.router.bias"] = rng.standard_normal(COUNT, np.float32)
    router = f"{NEW}.router" if gpt_oss else f"{OLD}.gate"
    found[f"{router}.weight"] = rng.standard_normal((COUNT, HIDDEN), np.float32) / 4
    for norm in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        found[f"model.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    found["model.embed_tokens.weight"] = rng.standard_normal((100, HIDDEN), np.float32)
    found["lm_head.weight"] = rng.standard_normal((100, HIDDEN), np.float32) / 8
    return found


def experts(grid: bool = False) -> dict[str, np.ndarray]:
    """gate and up [experts, FFN, HIDDEN], down [experts, HIDDEN, FFN]; on a `grid` of MXFP4 numbers."""
    rng = np.random.default_rng(4)
    shapes = {"gate": (COUNT, FFN, HIDDEN), "up": (COUNT, FFN, HIDDEN), "down": (COUNT, HIDDEN, FFN)}
    if not grid:
        return {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
    return {
        name: E2M1[rng.integers(0, 16, shape)] * np.repeat(_powers(rng, shape), 32, axis=2)
        for name, shape in shapes.items()
    }


def _powers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ldexp(np.float32(1), rng.integers(-7, -3, (*shape[:2], shape[2] // 32)))


def write(folder: Path, tensors: Tensors) -> None:
    save(tensors, folder / "model.safetensors")


def logits(folder: Path, config: Tensors, method: str | None = None, backend: str = "native") -> np.ndarray:
    arch = read_arch(config)
    model = declare(arch)
    tensors = load(
        model,
        open_checkpoint(folder),
        "float32",
        stored=quantize(arch),
        roundings=roundings(model, method),
    )
    bound = bind(model, tensors, Precision(quantized="float32"), LIMITS, backend)
    bound.allocate_cache(20)
    return np.array(bound.forward(prompt_step(np.arange(11, dtype=np.int32))))


def spelled(how: str) -> Tensors:
    """Mixtral's experts as a checkpoint spells them."""
    parts = experts()
    old = {"gate": "w1", "up": "w3", "down": "w2"}
    if how == "stacked":
        both = np.concatenate([parts["gate"], parts["up"]], axis=1)
        return {f"{NEW}.experts.gate_up_proj": both, f"{NEW}.experts.down_proj": parts["down"]}
    stem = NEW if how == "mlp" else OLD
    return {
        f"{stem}.experts.{e}.{old[name] if how == 'w1' else f'{name}_proj'}.weight": values[e]
        for name, values in parts.items()
        for e in range(COUNT)
    }


@pytest.mark.parametrize("how", ["block_sparse_moe", "mlp", "stacked"])
def test_every_spelling_is_the_same_model(how: str, tmp_path: Path) -> None:
    answers = []
    for name in ("w1", how):
        (tmp_path / name).mkdir()
        write(tmp_path / name, {**others(), **spelled(name)})
        answers.append(logits(tmp_path / name, MIXTRAL))
    np.testing.assert_array_equal(*answers)


def gpt_oss(stored: str) -> Tensors:
    """Experts of gpt-oss: plain ones turned round, or MXFP4."""
    parts = experts(grid=True)
    both = np.empty((COUNT, 2 * FFN, HIDDEN), np.float32)
    both[:, ::2], both[:, 1::2] = parts["gate"], parts["up"]
    rng = np.random.default_rng(5)
    found: Tensors = {
        f"{NEW}.experts.gate_up_proj_bias": rng.standard_normal((COUNT, 2 * FFN), np.float32),
        f"{NEW}.experts.down_proj_bias": rng.standard_normal((COUNT, HIDDEN), np.float32),
    }
    for name, values in (("gate_up_proj", both), ("down_proj", parts["down"])):
        stem = f"{NEW}.experts.{name}"
        if stored == "plain":
            found[stem] = np.ascontiguousarray(values.swapaxes(1, 2))
        else:
            found[f"{stem}_blocks"], found[f"{stem}_scales"] = mxfp4(values)
    return found


def mxfp4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales of numbers that MXFP4 has."""
    runs = values.reshape(*values.shape[:2], -1, 32)
    scale, done = np.zeros(runs.shape[:-1], np.int64), np.zeros(runs.shape[:-1], bool)
    for power in range(-12, 4):  # the smallest scale that leaves every number in the table
        fits = np.isin(runs / np.float32(2.0**power), E2M1).all(axis=-1)
        scale, done = np.where(fits & ~done, power, scale), done | fits
    assert done.all()
    numbers = runs / np.ldexp(np.float32(1), scale)[..., None]
    codes = np.argmin(np.abs(numbers[..., None] - E2M1), axis=-1).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (scale + 127).astype(np.uint8)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_mxfp4_is_what_it_stands_for(backend: str, tmp_path: Path) -> None:
    answers = []
    for stored, config in (
        ("plain", GPT_OSS),
        ("mxfp4", {**GPT_OSS, "quantization_config": {"quant_method": "mxfp4"}}),
    ):
        (tmp_path / stored).mkdir()
        write(tmp_path / stored, {**others(gpt_oss=True), **gpt_oss(stored)})
        answers.append(logits(tmp_path / stored, config, backend=backend))
    assert np.abs(answers[0] - answers[1]).max() <= 1e-4 * answers[0].std()


def test_mxfp4_stays_mxfp4(tmp_path: Path) -> None:
    write(tmp_path, {**others(gpt_oss=True), **gpt_oss("mxfp4")})
    arch = read_arch({**GPT_OSS, "quantization_config": {"quant_method": "mxfp4"}})
    model = declare(arch)
    found = {p.name: t for p, t in load(model, open_checkpoint(tmp_path), "bfloat16", stored=quantize(arch))}
    gate, router = found["blocks.0.mlp.gate"], found["blocks.0.mlp.router.weight"]
    assert isinstance(gate, Experts)
    assert all(isinstance(one, Lut4) for one in gate)
    np.testing.assert_array_equal(gate.dequantize(), experts(grid=True)["gate"])
    assert router.shape == (COUNT, HIDDEN)


def test_experts_of_gptq(tmp_path: Path) -> None:
    config = {**MIXTRAL, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    rng, plain, stored = np.random.default_rng(6), {}, {}
    for name in spelled("w1"):
        stem = name.removesuffix(".weight")
        rows, cols = spelled("w1")[name].shape
        tensors, values = packers.gptq(rng, rows, cols, act_order=True)
        stored |= {f"{stem}.{suffix}": tensor for suffix, tensor in tensors.items()}
        plain[name] = values
    answers = []
    for folder, tensors, how in ((tmp_path / "a", plain, MIXTRAL), (tmp_path / "b", stored, config)):
        folder.mkdir()
        write(folder, {**others(), **tensors})
        answers.append(logits(folder, how))
    assert np.abs(answers[0] - answers[1]).max() <= 1e-4 * answers[0].std()


def stacked_fp8(rng: np.random.Generator, scales: str) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Stacks of 8-bit floats as transformers saves them, and their numbers."""
    found: Tensors = {}
    values = {}
    for name, (rows, cols) in (("gate_up_proj", (2 * FFN, HIDDEN)), ("down_proj", (HIDDEN, FFN))):
        made = [
            packers.fp8(rng, rows, cols, scales="matrix" if scales == "halves" else scales)
            for _ in range(COUNT)
        ]
        stem = f"{NEW}.experts.{name}"
        found[stem] = (np.stack([tensors["weight"][0] for tensors, _ in made]), "float8_e4m3fn")
        scale = np.stack([tensors["weight_scale"] for tensors, _ in made])
        values[stem] = np.stack([numbers for _, numbers in made])
        if scales == "halves":
            scale = scale.reshape(COUNT, 1, 1)
            if name == "gate_up_proj":
                scale = np.concatenate([scale, 3 * scale], axis=1)
                values[stem][:, FFN:] *= 3
        found[f"{stem}_scale_inv"] = scale
        found[f"{stem}_activation_scale"] = np.ones(COUNT, np.float32)
    return found, values


@pytest.mark.parametrize("scales", ["block", "row", "halves"])
def test_stacks_of_8_bit_floats(scales: str, tmp_path: Path) -> None:
    said = {"quant_method": "fp8", **({"weight_block_size": [128, 128]} if scales == "block" else {})}
    stored, plain = stacked_fp8(np.random.default_rng(2), scales)
    answers = []
    for name, tensors, config in (("a", plain, {}), ("b", stored, {"quantization_config": said})):
        (tmp_path / name).mkdir()
        write(tmp_path / name, {**others(), **tensors})
        answers.append(logits(tmp_path / name, {**MIXTRAL, **config}))
    assert np.abs(answers[0] - answers[1]).max() <= 1e-4 * answers[0].std()


@pytest.mark.parametrize("nested", [False, True])
def test_stacks_of_bitsandbytes(nested: bool, tmp_path: Path) -> None:
    stored: Tensors = {}
    plain = {}
    for name, (rows, cols) in (("gate_up_proj", (2 * FFN, HIDDEN)), ("down_proj", (HIDDEN, FFN))):
        stem, shape = f"{NEW}.experts.{name}", [COUNT, rows, cols]
        tensors, values = packers.bnb4(
            np.random.default_rng(rows), COUNT * rows, cols, nested=nested, shape=shape
        )
        stored |= {f"{stem}{suffix.removeprefix('weight')}": tensor for suffix, tensor in tensors.items()}
        plain[stem] = values.reshape(shape)
    config = {**MIXTRAL, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    answers = []
    for folder, some, how in ((tmp_path / "a", plain, MIXTRAL), (tmp_path / "b", stored, config)):
        folder.mkdir()
        write(folder, {**others(), **some})
        answers.append(logits(folder, how))
    assert np.abs(answers[0] - answers[1]).max() <= 1e-4 * answers[0].std()


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_experts_are_rounded_and_their_router_is_not(method: str, tmp_path: Path) -> None:
    write(tmp_path, {**others(), **spelled("w1")})
    model = declare(read_arch(MIXTRAL))
    rounded = roundings(model, method)
    assert "blocks.0.mlp.router.weight" not in rounded
    found = {p.name: t for p, t in load(model, open_checkpoint(tmp_path), "float32", roundings=rounded)}
    up = found["blocks.0.mlp.up"]
    assert isinstance(up, Experts)
    one = up.make(0)
    assert isinstance(one, Online)
    assert isinstance(one.rounded(), Int4Group) is (method == "int4")
    whole, few = logits(tmp_path, MIXTRAL), logits(tmp_path, MIXTRAL, method)
    assert 0 < np.abs(whole - few).max() < (0.1 if method == "int8" else 1.0) * whole.std()


def test_dummies_of_experts_differ_and_are_rounded() -> None:
    model = declare(read_arch(MIXTRAL))
    found = {p.name: t for p, t in load(model, DummyWeights("bfloat16"), "bfloat16")}
    gate = found["blocks.0.mlp.gate"]
    assert gate.shape == (COUNT, FFN, HIDDEN)
    first, second, *_ = gate
    assert not np.array_equal(first.dequantize(), second.dequantize())
    assert abs(first.dequantize().std() * HIDDEN**0.5 - 1) < 0.1
    rounded = {
        p.name: t
        for p, t in load(model, DummyWeights("bfloat16"), "bfloat16", roundings=roundings(model, "int4"))
    }
    assert all(isinstance(one, Online) for one in rounded["blocks.0.mlp.gate"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{OLD}.experts.3.w1.weight": None}, "experts.3.w1.weight is missing"),
        (
            {f"{OLD}.experts.1.w2.weight": np.zeros((FFN, HIDDEN), np.float32)},
            r"\[96, 64\], expected \[64, 96\]",
        ),
        ({f"{OLD}.experts.5.w1.weight": np.zeros((FFN, HIDDEN), np.float32)}, "no place for 1"),
    ],
)
def test_damage_names_the_expert(change: Tensors, words: str, tmp_path: Path) -> None:
    tensors = {**others(), **spelled("w1"), **change}
    write(tmp_path, {name: values for name, values in tensors.items() if values is not None})
    with pytest.raises(CheckpointError, match=words):
        logits(tmp_path, MIXTRAL)


def test_a_stack_of_another_number_of_experts(tmp_path: Path) -> None:
    tensors = {**others(), **spelled("stacked")}
    tensors[f"{NEW}.experts.down_proj"] = tensors[f"{NEW}.experts.down_proj"][:-1]
    write(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"down_proj .* expected 5 experts"):
        logits(tmp_path, MIXTRAL)


def test_more_chosen_than_there_are() -> None:
    with pytest.raises(CheckpointError, match="num_experts_per_tok 6 is more than num_experts 5"):
        declare(read_arch({**MIXTRAL, "num_experts_per_tok": 6}))
