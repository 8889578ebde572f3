"""Against PEFT itself, where it is installed: adapters that it writes, and what its own model gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_cases import VOCAB, ask, make, request, values

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 9, 77, 13], list(range(1, 30)), [100, 2, 3]]
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Phi": {},
    "Phi3": {},
    "GPT2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": QWEN,
    "Qwen2Moe": {**QWEN, "shared_expert_intermediate_size": 40},
    "Olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12, "sliding_window": 16},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("dora", "Llama", {"use_dora": True, "target_modules": "all-linear"}),
    ("dora of biased matrices", "Qwen2", {"use_dora": True, "target_modules": ATTENTION}),
    (
        "dora of Conv1D",
        "GPT2",
        {"use_dora": True, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    ("dora of the ends", "Llama", {"use_dora": True, "target_modules": ["embed_tokens", "lm_head"]}),
    (
        "dora, rslora",
        "Llama",
        {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    ),
    ("bias of B", "Llama", {"lora_bias": True, "target_modules": ["q_proj", "up_proj"]}),
    ("biases of all", "Qwen2", {"bias": "all", "target_modules": ["q_proj", "down_proj"]}),
    ("biases, dora", "Qwen2", {"bias": "lora_only", "use_dora": True, "target_modules": ATTENTION}),
    ("biased head", "Phi", {"target_modules": ["lm_head", "dense", "fc1"]}),
    ("biased head's bias", "Phi", {"bias": "lora_only", "target_modules": ["lm_head", "q_proj"]}),
    ("one matrix of three", "Phi3", {"target_modules": "all-linear", "use_dora": True}),
    ("Conv1D", "GPT2", {"target_modules": "all-linear", "bias": "lora_only", "fan_in_fan_out": True}),
    ("excluded", "Llama", {"target_modules": "all-linear", "exclude_modules": ["up_proj"]}),
    (
        "layers",
        "Llama",
        {"target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    ("router", "Mixtral", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
    *(
        (f"experts of {kind}", kind, {"target_modules": [], "target_parameters": EXPERTS})
        for kind in ("Mixtral", "Qwen3Moe", "Qwen2Moe", "Olmoe", "GptOss")
    ),
    ("one of two", "Qwen3Moe", {"target_modules": ATTENTION, "target_parameters": EXPERTS[1:]}),
    (
        "ranks",
        "Mixtral",
        {
            "target_modules": ATTENTION,
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.gate_up_proj": 7},
            "alpha_pattern": {"experts.down_proj": 3},
        },
    ),
]


def written(root: Path, kind: str, said: dict[str, Any]) -> tuple[Path, Path, list[Any]]:
    """(base, adapter, logits of PEFT's model at the end of each prompt)."""
    torch.manual_seed(3)
    own = {"vocab_size": VOCAB} if kind == "GPT2" else {**SMALL, "tie_word_embeddings": False}
    config = getattr(transformers, f"{kind}Config")(**own, **FAMILIES[kind])
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(
        config
    ).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.2)
    model.save_pretrained(root / "base")
    model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "bias": "none", **said}))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data.normal_(0, 0.3)
        elif name.endswith("bias") and parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(root / "adapter")
    with torch.no_grad():
        logits = [
            model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy() for ids in PROMPTS
        ]
    return root / "base", root / "adapter", logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_like_peft_itself(kind: str, said: dict[str, Any], tmp_path: Path) -> None:
    base, adapter, logits = written(tmp_path, kind, said)
    for backend in ("native", "numpy", "torch"):
        llm = make(base, backend=backend, max_model_len=128)
        for output, expected in zip(ask(llm, PROMPTS, request(1, adapter)), logits, strict=True):
            best = np.sort(expected)[::-1][:5]
            np.testing.assert_allclose(np.sort(values(output)[1][0])[::-1], best, atol=3e-4)
            assert values(output)[0][0] == int(expected.argmax())
        plain = ask(llm, PROMPTS[:1])[0]
        assert not np.allclose(np.sort(values(plain)[1][0])[::-1], np.sort(logits[0])[::-1][:5], atol=1e-2)
