"""A tiny Llama on disk, adapters for it, and the same with an adapter merged in by a few lines of our own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.types.lora import LoRARequest
from octavo.types.outputs import RequestOutput

F32 = NDArray[np.float32]
HIDDEN, FFN, HEADS, KV, VOCAB, LAYERS = 48, 80, 4, 2, 128, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
KV_WIDTH = HIDDEN // HEADS * KV
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_WIDTH, HIDDEN),
    "self_attn.v_proj": (KV_WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
ALL = [name.rpartition(".")[2] for name in SHAPES]


def base_weights() -> dict[str, F32]:
    """A whole checkpoint."""
    rng = np.random.default_rng(7)

    def rand(*shape: int) -> F32:
        return np.asarray(rng.standard_normal(shape) / math.sqrt(shape[-1]), np.float32)

    found = {"model.embed_tokens.weight": rand(VOCAB, HIDDEN) * 4, "lm_head.weight": rand(VOCAB, HIDDEN)}
    found["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        for name, shape in SHAPES.items():
            found[f"{path}.{name}.weight"] = rand(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{path}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    return found


def write_base(folder: Path, weights: Mapping[str, F32]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(dict(weights), folder / "model.safetensors")
    return folder


def modules(names: list[str], layers: range = range(LAYERS)) -> dict[str, tuple[int, int]]:
    """Path -> [out, in] of the modules called `names`."""
    found = {
        f"model.layers.{layer}.{name}": shape
        for layer in layers
        for name, shape in SHAPES.items()
        if name.rpartition(".")[2] in names
    }
    whole = {"lm_head": (VOCAB, HIDDEN), "model.embed_tokens": (VOCAB, HIDDEN)}
    return found | {path: shape for path, shape in whole.items() if path.rpartition(".")[2] in names}


def write_adapter(
    folder: Path, seed: int, rank: int, names: list[str], *, ranks: Mapping[str, int] = {}, **said: Any
) -> Path:
    """An adapter of `rank` (of `ranks[name]` where a module's name ends so) on the modules `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, F32] = {}
    for module, (out, inner) in modules(names).items():
        r = ranks.get(module.rpartition(".")[2], rank)
        root = f"base_model.model.{module}"
        if module.endswith("embed_tokens"):
            tensors[f"{root}.lora_embedding_A"] = np.asarray(rng.standard_normal((r, out)), np.float32)
            b = rng.standard_normal((inner, r)) / math.sqrt(r)
            tensors[f"{root}.lora_embedding_B"] = np.asarray(b, np.float32)
            tensors[f"{root}.base_layer.weight"] = base_weights()[f"{module}.weight"]
            continue
        a, b = rng.standard_normal((r, inner)), rng.standard_normal((out, r))
        tensors[f"{root}.lora_A.weight"] = np.asarray(a / math.sqrt(inner), np.float32)
        tensors[f"{root}.lora_B.weight"] = np.asarray(b / math.sqrt(r), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **said}))
    return folder


def merged(folder: Path, adapter: Path, scale: float | Mapping[str, float]) -> Path:
    """The base with `scale` B A added to its matrices."""
    weights, tensors = base_weights(), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith("lora_embedding_A")]:
        b = tensors[name.replace("_A", "_B")].astype(np.float64)
        assert isinstance(scale, float)
        table = "model.embed_tokens.weight"
        weights[table] = np.asarray(weights[table] + scale * (b @ tensors[name]).T, np.float32)
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        factor = scale if isinstance(scale, float) else scale[module.rpartition(".")[2]]
        delta = tensors[name.replace("lora_A", "lora_B")].astype(np.float64) @ tensors[name].astype(
            np.float64
        )
        weights[f"{module}.weight"] = np.asarray(weights[f"{module}.weight"] + factor * delta, np.float32)
    return write_base(folder, weights)


def make(folder: Path, **keywords: Any) -> LLM:
    settings = {"dtype": "float32", "enable_lora": True, "quiet": True, "skip_tokenizer_init": True}
    return LLM(str(folder), **{**settings, "kv_cache_memory_bytes": 1 << 20, **keywords})


PROMPTS = [[5, 9, 77, 13], list(range(1, 40)), [100, 2, 3], list(range(60, 83))]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=5, detokenize=False)


def ask(llm: LLM, prompts: list[list[int]], lora: Any = None) -> list[RequestOutput]:
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, lora_request=lora)


def values(output: RequestOutput) -> tuple[list[int], F32]:
    """(the answer, the log-probabilities of the five best of each token)."""
    answer = output.outputs[0]
    assert answer.logprobs is not None
    rows = [[entry.logprob for entry in position.values()][:5] for position in answer.logprobs]
    return answer.token_ids, np.array(rows, np.float32)


def request(number: int, folder: Path) -> LoRARequest:
    return LoRARequest(f"adapter-{number}", number, str(folder))
