"""What a loaded model keeps in memory: its packed weights and its cache, not what they were made from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")
if not sys.platform.startswith("linux"):
    pytest.skip("resident memory is read from /proc", allow_module_level=True)

HIDDEN, FFN, LAYERS, VOCAB = 512, 2048, 6, 8192
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256,
    "torch_dtype": "float32", "tie_word_embeddings": False, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
KV_WIDTH = HIDDEN // 4


def benchmark() -> Any:
    file = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """131 MB of float32 weights."""
    from octavo.convert.safetensors_file import Piece, write_weights

    folder = tmp_path_factory.mktemp("model")
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, rows, cols in (
            ("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", KV_WIDTH, HIDDEN),
            ("self_attn.v_proj", KV_WIDTH, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FFN, HIDDEN), ("mlp.up_proj", FFN, HIDDEN), ("mlp.down_proj", HIDDEN, FFN),
        ):  # fmt: skip
            shapes[f"{at}.{name}.weight"] = (rows, cols)
        shapes |= {f"{at}.{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
    rng = np.random.default_rng(0)
    write_weights(
        folder,
        [
            Piece(name, "float32", shape, lambda shape=shape: iter([rng.random(shape, np.float32)]))  # type: ignore[misc]
            for name, shape in shapes.items()
        ],
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize("quantization", ["int4", None])
def test_a_loaded_model_keeps_its_packed_weights_and_its_cache(
    model: Path, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", "off")
    found = benchmark().measure(
        str(model),
        quantization=quantization,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=2,
    )
    assert found["resident"] <= found["bound"]
    # The bound's 150 MB hold more than these weights: what the load itself adds is looked at more closely.
    # Measured: 19 MB (arrays of a step, code that is paged in).
    assert found["resident"] - found["before"] <= 1.1 * found["packed"] + found["kv"] + 40e6
    assert found["packed"] < 75e6, found
