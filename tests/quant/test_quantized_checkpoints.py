"""Whole checkpoints in quantized formats: the frame around the formats, and the answers of small models."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from held import save
from test_online import prompt_step
from tiny_model import LIMITS, TINY

from octavo.build.bind import bind
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.build.outline import outline
from octavo.build.quantize import quantize, with_quantization
from octavo.config.arch import read_arch
from octavo.config.engine import EngineConfig
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.contract import Precision
from octavo.ops.layouts import Dense, Int4Group, Stack
from octavo.pipeline.vocab import read_json
from octavo.weights.checkpoint import open_checkpoint

SMALL = {**TINY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
WIDTHS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


class Written:
    """A small Qwen2 model on disk twice: quantized, and as the plain numbers that this stands for."""

    def __init__(self, folder: Path, config: dict[str, Any] | None, write: Any) -> None:
        rng = np.random.default_rng(7)
        self.folder = folder
        plain, stored = {}, {}
        for name, shape in {"embed_tokens": (300, 64), "norm": (64,)}.items():
            plain[f"model.{name}.weight"] = rng.standard_normal(shape, np.float32) * 0.05 + (len(shape) < 2)
        plain["lm_head.weight"] = rng.standard_normal((300, 64), np.float32) * 0.2
        for layer in range(2):
            stem = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                plain[f"{stem}.{norm}.weight"] = np.ones(64, np.float32)
            for part in ("q", "k", "v"):
                rows = WIDTHS[f"self_attn.{part}_proj"][0]
                plain[f"{stem}.self_attn.{part}_proj.bias"] = rng.standard_normal(rows, np.float32) * 0.1
        stored.update(plain)
        for layer in range(2):
            for module, (rows, cols) in WIDTHS.items():
                tensors, values = write(rng, module, rows, cols)
                stem = f"model.layers.{layer}.{module}"
                plain[f"{stem}.weight"] = values
                stored.update({f"{stem}.{suffix}": tensor for suffix, tensor in tensors.items()})
        self.stored = stored
        for name, tensors, said in (("plain", plain, None), ("stored", stored, config)):
            (folder / name).mkdir()
            save(tensors, folder / name / "model.safetensors")
            whole = {**SMALL, **({"quantization_config": said} if said else {})}
            (folder / name / "config.json").write_text(json.dumps(whole))

    def rewrite(self, **changes: Any) -> None:
        """Tensors changed (None: removed) in the quantized checkpoint."""
        tensors = {**self.stored, **{name.replace("__", "."): value for name, value in changes.items()}}
        whole = {k: v for k, v in tensors.items() if v is not None}
        save(whole, self.folder / "stored" / "model.safetensors")

    def loaded(self, name: str = "stored") -> dict[str, Any]:
        folder = self.folder / name
        arch = with_quantization(read_arch(read_json(folder / "config.json")), folder, read_json)
        model = declare(arch)
        return {p.name: x for p, x in load(model, open_checkpoint(folder), "float32", stored=quantize(arch))}

    def logits(self, name: str, backend: str = "native", quantized: str = "float32") -> Any:
        folder = self.folder / name
        arch = with_quantization(read_arch(read_json(folder / "config.json")), folder, read_json)
        model = declare(arch)
        tensors = load(model, open_checkpoint(folder), "float32", stored=quantize(arch))
        bound = bind(model, tensors, Precision(quantized=quantized), LIMITS, backend)
        bound.allocate_cache(16)
        tokens = np.random.default_rng(1).integers(0, 300, 40)
        return bound.forward(prompt_step(tokens)).copy()


def gptq(rng: Any, module: str, rows: int, cols: int) -> Any:
    return packers.gptq(rng, rows, cols, act_order=True)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": True}


def mixed(rng: Any, module: str, rows: int, cols: int) -> Any:
    """An act-order of its own for query and key, 8 bits for the value, one matrix left plain."""
    if module.endswith("v_proj"):
        return packers.gptq(rng, rows, cols, bits=8)
    if module.endswith("up_proj"):
        values = (rng.standard_normal((rows, cols)) * 0.1).astype(np.float32)
        return {"weight": values}, values
    return packers.gptq(rng, rows, cols, act_order=True)


MIXED = {**GPTQ, "dynamic": {r"+:.*v_proj": {"bits": 8}, r"-:.*up_proj": {}}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def awq(rng: Any, module: str, rows: int, cols: int) -> Any:
    return packers.awq(rng, rows, cols, group=32)


def compressed(inputs: Any = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
OTHERS = {
    "w4a16": (
        compressed(num_bits=4, group_size=32),
        lambda rng, _, *shape: packers.packed(rng, *shape, asymmetric=True),
    ),
    "w8a16": (compressed(num_bits=8), lambda rng, _, *shape: packers.packed(rng, *shape, bits=8, group=-1)),
    "w8a8": (
        compressed({"num_bits": 8, "dynamic": True, "strategy": "token", "symmetric": False}, num_bits=8),
        lambda rng, _, *shape: packers.int8(rng, *shape),
    ),
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda rng, _, *shape: packers.fp8(rng, *shape, scales="block", name="weight_scale_inv"),
    ),
    "nvfp4": (
        compressed(num_bits=4, type="float", group_size=16),
        lambda rng, _, *shape: packers.fp4(rng, *shape, nv=True),
    ),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda rng, _, *shape: packers.bnb4(rng, *shape, nested=True),
    ),
    "llm.int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        lambda rng, _, *shape: packers.bnb8(rng, *shape),
    ),
    "torchao": (TORCHAO, lambda rng, _, *shape: packers.torchao(rng, *shape)),
    "torchao-int4": (TORCHAO, lambda rng, _, *shape: packers.torchao4(rng, *shape)),
    "torchao-tiles": (TORCHAO, lambda rng, _, *shape: packers.tinygemm(rng, *shape)),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        lambda rng, _, *shape: packers.hqq(rng, *shape),
    ),
    "mxfp4": (
        compressed(num_bits=4, type="float", group_size=32),
        lambda rng, _, *shape: packers.fp4(rng, *shape, nv=False),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_formats_answer_as_their_numbers_do(tmp_path: Path, name: str) -> None:
    written = Written(tmp_path, *OTHERS[name])
    if OTHERS[name][0]["quant_method"] not in ("bitsandbytes", "hqq", "torchao"):
        # Scales that others need for a cache or inputs of 8 bits.
        one = np.ones(1, np.float32)
        written.rewrite(
            model__layers__0__self_attn__k_scale=one, model__layers__1__self_attn__q_proj__input_scale=one
        )
    if name == "fp8":
        written.rewrite(model__layers__1__self_attn__q_proj__act_scale=one)
    expected = written.logits("plain")
    for backend in ("native", "numpy"):
        np.testing.assert_allclose(written.logits("stored", backend), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", ["native", "numpy", "torch"])
@pytest.mark.parametrize(("config", "write"), [(GPTQ, gptq), (MIXED, mixed), (AWQ, awq)])
def test_answers_are_those_of_the_plain_numbers(
    tmp_path: Path, backend: str, config: dict[str, Any], write: Any
) -> None:
    written = Written(tmp_path, config, write)
    expected = written.logits("plain")
    np.testing.assert_allclose(written.logits("stored", backend), expected, rtol=0, atol=5e-4)
    # Rounded activations stay near; backends differ where a number lies on the edge of two codes.
    rounded = written.logits("stored", backend, "int8")
    assert 1e-3 < np.abs(rounded - expected).mean() < 0.05 * expected.std()
    assert np.abs(rounded - written.logits("stored", "numpy", "int8")).mean() < 0.005 * expected.std()


def test_parts_that_one_layout_holds_become_one_and_others_stand_apart(tmp_path: Path) -> None:
    written = Written(tmp_path, MIXED, mixed)
    layouts = written.loaded()
    qkv, gate_up = layouts["blocks.0.attention.qkv.weight"], layouts["blocks.0.mlp.gate_up.weight"]
    assert [part.shape[0] for part in qkv.parts] == [64, 32, 32]
    assert isinstance(gate_up, Stack)
    assert gate_up.shape == (192, 64)
    rows = np.array([0, 100, 63, 127, 64])
    assert np.array_equal(qkv.take(rows).dequantize(), qkv.dequantize()[rows])
    assert np.array_equal(qkv.slice(0, 50, 110).dequantize(), qkv.dequantize()[50:110])
    (tmp_path / "even").mkdir()
    assert isinstance(
        Written(tmp_path / "even", AWQ, awq).loaded()["blocks.0.attention.qkv.weight"], Int4Group
    )


def test_the_file_of_hqqs_own_library_is_known_by_its_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    config, write = OTHERS["hqq"]
    written = Written(tmp_path, config, write)
    expected = written.logits("stored")
    modules: dict[str, dict[str, Any]] = {}
    for name, value in written.stored.items():
        module, _, word = name.rpartition(".")
        said = bytes(value).decode() if word == "packing" else None
        modules.setdefault(module, {})[word] = said or torch.from_numpy(np.array(value))
    folder = tmp_path / "stored"
    (folder / "model.safetensors").unlink()
    torch.save(modules, folder / "qmodel.pt")
    (folder / "config.json").write_text(json.dumps(SMALL))
    np.testing.assert_array_equal(written.logits("stored"), expected)


def plain_but(tensors: dict[str, Any], *words: str) -> dict[str, Any]:
    """The tensors whose names have none of the words."""
    return {name: value for name, value in tensors.items() if not any(word in name for word in words)}


@pytest.mark.parametrize("name", ["w4a16", "w8a8", "nf4", "torchao", "hqq"])
def test_a_quantized_head_of_a_tied_model_is_used(tmp_path: Path, name: str) -> None:
    config, write = OTHERS[name]
    written = Written(tmp_path, config, write)
    module, values = write(np.random.default_rng(5), "lm_head", 300, 64)
    head = {f"lm_head.{suffix}": tensor for suffix, tensor in module.items()}
    save({**plain_but(written.stored, "lm_head"), **head}, tmp_path / "stored" / "model.safetensors")
    tied = {**SMALL, "quantization_config": config, "tie_word_embeddings": True}
    (tmp_path / "stored" / "config.json").write_text(json.dumps(tied))
    known = outline(EngineConfig(model=str(tmp_path / "stored")), tmp_path / "stored", read_json)
    assert not known.arch.tied
    layouts = {p.name: x for p, x in load(known.decoder, known.checkpoint, "float32", stored=known.stored)}
    np.testing.assert_allclose(layouts["head.weight"].dequantize(), values, rtol=1e-5, atol=1e-6)
    assert layouts["embed.weight"].shape == (300, 64)
    # Where the embedding is kept under the head's name alone, it stays one matrix.
    save(
        {**plain_but(written.stored, "lm_head", "embed_tokens"), **head},
        tmp_path / "stored" / "model.safetensors",
    )
    assert outline(EngineConfig(), tmp_path / "stored", read_json).arch.tied


def test_the_config_may_stand_beside_config_json(tmp_path: Path) -> None:
    written = Written(tmp_path, None, gptq)
    beside = {k: v for k, v in GPTQ.items() if k != "quant_method"}
    (tmp_path / "stored" / "quantize_config.json").write_text(json.dumps(beside))
    np.testing.assert_allclose(written.logits("stored"), written.logits("plain"), rtol=0, atol=5e-4)
    (tmp_path / "awq").mkdir()
    old = Written(tmp_path / "awq", None, awq)
    beside = {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}
    (tmp_path / "awq" / "stored" / "quant_config.json").write_text(json.dumps(beside))
    np.testing.assert_allclose(old.logits("stored"), old.logits("plain"), rtol=0, atol=5e-4)


def test_biases_of_zeros_are_passed_over_and_others_are_not(tmp_path: Path) -> None:
    written = Written(tmp_path, GPTQ, gptq)
    written.rewrite(model__layers__0__mlp__down_proj__bias=np.zeros(64, np.float16))
    written.loaded()
    written.rewrite(model__layers__0__mlp__down_proj__bias=np.ones(64, np.float16))
    with pytest.raises(CheckpointError, match=r"no place for 1 .*down_proj.bias"):
        written.loaded()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_numbers_that_only_plain_weights_hold_take_the_models_dtype(tmp_path: Path, dtype: str) -> None:
    written = Written(tmp_path, *OTHERS["torchao-int4"])
    factors = np.linspace(0.5, 2, 96, dtype=np.float32)
    written.rewrite(**{"model.layers.1.mlp.down_proj._weight_act_pre_scale": factors})
    folder = tmp_path / "stored"
    arch = read_arch(read_json(folder / "config.json"))
    tensors = load(declare(arch), open_checkpoint(folder), dtype, stored=quantize(arch))
    found = {param.name: layout for param, layout in tensors}
    assert isinstance(found["blocks.0.mlp.down.weight"], Int4Group)
    scaled = found["blocks.1.mlp.down.weight"]
    assert isinstance(scaled, Dense)
    assert scaled.dtype == dtype


def test_a_module_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    written = Written(tmp_path, GPTQ, gptq)
    written.rewrite(model__layers__1__mlp__up_proj__qzeros=None)
    with pytest.raises(CheckpointError, match=r"up_proj.qzeros is missing .* beside .*up_proj.qweight"):
        written.loaded()


def test_a_contradicting_flag_gets_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    arch = read_arch({**SMALL, "quantization_config": GPTQ})
    with caplog.at_level(logging.WARNING, logger="octavo"):
        for agreeing in (None, "gptq", "gptq_marlin", "GPTQ"):
            assert quantize(arch, agreeing) is not None
        assert not caplog.records
        assert quantize(arch, "awq") is not None
    (record,) = caplog.records
    assert record.getMessage() == "The checkpoint is quantized with gptq: --quantization awq is not used."


def test_an_unknown_method_is_refused_by_name() -> None:
    for config, said in (({"quant_method": "spqr"}, "'spqr'"), ({"x": 1}, "'unnamed'")):
        with pytest.raises(UnsupportedModel, match=rf"{said}, which is not supported \(supported: auto"):
            quantize(read_arch({**SMALL, "quantization_config": config}))
    with pytest.raises(CheckpointError, match=r"quant_method \[1\]"):
        quantize(read_arch({**SMALL, "quantization_config": {"quant_method": [1]}}))
    assert quantize(read_arch(SMALL)) is None
