"""Tiny random checkpoints made by transformers, one per family and variant, and its own numbers for them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB = 160
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MOE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


@dataclass(frozen=True)
class Case:
    """`kind` is transformers' name of the family (`Qwen2` of Qwen2Config and Qwen2ForCausalLM)."""

    name: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    model: str = "ForCausalLM"
    published: bool = False
    """Rewrite config.json into the spelling of published checkpoints."""
    cached: bool = False
    """Frequencies depend on the length: compare with token-by-token generation, not with one long pass."""
    base_only: bool = False
    """Save without the outer class's prefix, as the first GPT-2 was."""


_LONG = {
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES = (
    Case("llama", "Llama"),
    Case("llama-published", "Llama", rope("default", 500000.0), published=True),
    Case(
        "llama-tied-biased", "Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    Case("llama-head80", "Llama", {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 1}),
    Case("llama-head16-mha", "Llama", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    Case("llama-bf16", "Llama", dtype="bfloat16"),
    Case("llama-linear", "Llama", rope("linear", factor=4.0), published=True),
    Case(
        "llama-dynamic", "Llama", rope("dynamic", factor=2.0) | {"max_position_embeddings": 48}, cached=True
    ),
    Case("llama-llama3", "Llama", rope("llama3", 500000.0, **_LLAMA3)),
    Case("llama-llama3-published", "Llama", rope("llama3", 500000.0, **_LLAMA3), published=True),
    Case("llama-yarn", "Llama", rope("yarn", **_YARN), published=True),
    Case("qwen2-yarn-options", "Qwen2", rope("yarn", **_YARN, beta_fast=16, beta_slow=2, truncate=False)),
    Case("qwen2", "Qwen2", dtype="bfloat16", published=True),
    Case("qwen2-tied-f16", "Qwen2", {"tie_word_embeddings": True}, dtype="float16"),
    Case(
        "qwen2-window",
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
        published=True,
    ),
    Case("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}, published=True),
    Case("qwen3-biased", "Qwen3", {"head_dim": 16, "attention_bias": True}),
    Case("mistral", "Mistral", {"sliding_window": 20, "head_dim": None}, published=True),
    Case("mistral-full", "Mistral", {"sliding_window": None, "head_dim": 24}),
    Case(
        "gemma2",
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 12,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 3,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    Case("gemma2-published", "Gemma2", {"head_dim": 80, "sliding_window": 12}, published=True),
    Case(
        "gemma3",
        "Gemma3",
        {
            "head_dim": 32,
            "sliding_window": 12,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    ),
    Case(
        "gemma3-published",
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 12,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        published=True,
    ),
    Case("phi3", "Phi3", {"sliding_window": 24}, published=True),
    Case("phi3-partial", "Phi3", rope("default", partial_rotary_factor=0.5) | {"num_key_value_heads": 4}),
    Case(
        "phi3-longrope",
        "Phi3",
        rope("longrope", **_LONG) | {"original_max_position_embeddings": 40},
        cached=True,
        published=True,
    ),
    Case("gemma-says-gelu", "Gemma", {"head_dim": 24, "hidden_act": "gelu"}, published=True),
    Case(
        "granite",
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    Case("olmo2", "Olmo2", {"attention_bias": True}),
    Case("smollm3", "SmolLM3", {"num_hidden_layers": 5, "no_rope_layer_interval": 3}),
    Case(
        "smollm3-window",
        "SmolLM3",
        {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 12},
        published=True,
    ),
    Case("starcoder2", "Starcoder2", {"sliding_window": 12}, published=True),
    Case("stablelm", "StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}, published=True),
    Case("stablelm-parallel", "StableLm", {"use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    Case("phi", "Phi", {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    Case("cohere", "Cohere", {"logit_scale": 0.5}, published=True),
    Case("mixtral", "Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, published=True),
    Case("mixtral-window", "Mixtral", {"num_local_experts": 3, "sliding_window": 12}, dtype="bfloat16"),
    Case("qwen2-moe", "Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 40}, published=True),
    Case(
        "qwen2-moe-mixed",
        "Qwen2Moe",
        {
            **MOE,
            "shared_expert_intermediate_size": 48,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    Case("qwen3-moe", "Qwen3Moe", {**MOE, "head_dim": 16, "norm_topk_prob": True}, published=True),
    Case("qwen3-moe-window", "Qwen3Moe", {**MOE, "use_sliding_window": True, "sliding_window": 9}),
    Case("olmoe", "Olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "attention_bias": True}),
    Case("olmoe-all", "Olmoe", {"num_experts": 4, "num_experts_per_tok": 4, "norm_topk_prob": True}),
    Case(
        "gpt-oss",
        "GptOss",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "sliding_window": 10},
    ),
    Case(
        "gpt-oss-limit",
        "GptOss",
        {
            "num_local_experts": 4,
            "head_dim": 16,
            "swiglu_limit": 0.5,
            **rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
        },
        published=True,
    ),
    Case("gpt2", "GPT2", GPT2, model="LMHeadModel"),
    Case("gpt2-bare", "GPT2", {**GPT2, "n_inner": 80}, model="LMHeadModel", base_only=True),
    Case(
        "gpt2-untied-by-depth",
        "GPT2",
        {**GPT2, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
        model="LMHeadModel",
    ),
)


@dataclass
class Made:
    """A checkpoint on disk and the transformers model, in float32, that it was saved from."""

    case: Case
    folder: Path
    model: Any
    known: dict[tuple[tuple[int, ...], int], NDArray[np.float32]] = field(default_factory=dict)

    def logits(self, tokens: list[int], prompt: int) -> NDArray[np.float32]:
        """transformers' logits [len(tokens) - prompt + 1, vocab] from the prompt's last token on."""
        key = (tuple(tokens), prompt)
        if key not in self.known:
            self.known[key] = self._compute(tokens, prompt)
        return self.known[key]

    def _compute(self, tokens: list[int], prompt: int) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            if not self.case.cached:
                logits = self.model(torch.tensor([tokens])).logits[0, prompt - 1 :]
                return np.asarray(logits.numpy())
            # One token brings back the frequencies of short texts, which transformers keeps between calls.
            self.model(torch.tensor([[0]]))
            out = self.model(torch.tensor([tokens[:prompt]]), use_cache=True)
            rows = [out.logits[0, -1].numpy()]
            for token in tokens[prompt:]:
                out = self.model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                rows.append(out.logits[0, -1].numpy())
            return np.stack(rows)


def make(case: Case, folder: Path) -> Made:
    """Build the case's model with seeded weights and save it."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = "Gemma3Text" if case.kind == "Gemma3" else case.kind
    base = case.config if case.kind == "GPT2" else {**SMALL, **case.config}
    config = getattr(transformers, f"{name}Config")(**json.loads(json.dumps(base)))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{case.kind}{case.model}")(config).eval()
    randomise(model, sum(map(ord, case.name)))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, case.dtype)).float()
    # A copy, because casting a whole model rounds its rotary frequencies too.
    stored = copy.deepcopy(model).to(getattr(torch, case.dtype))
    (stored.transformer if case.base_only else stored).save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if case.base_only:
        written["architectures"] = ["GPT2LMHeadModel"]
    path.write_text(json.dumps(published(written) if case.published else written))
    return Made(case, folder, model)


def make_wrapper(folder: Path, prefix: str) -> Made:
    """Gemma 3 with a vision tower; `prefix` is what its text model's tensors begin with."""
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.Gemma3Config(
        text_config={**SMALL, "head_dim": 16, "sliding_window": 12},
        vision_config={"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **small},
        mm_tokens_per_image=4,
        boi_token_index=VOCAB - 3,
        eoi_token_index=VOCAB - 2,
        image_token_index=VOCAB - 1,
    )
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomise(model, 7)
    model.save_pretrained(folder)
    if prefix != "as saved":
        path = folder / "model.safetensors"
        head = next(n for n in load_file(path) if n.endswith("embed_tokens.weight"))[
            : -len("embed_tokens.weight")
        ]
        renamed = {
            n.replace(head, prefix, 1) if n.startswith(head) else n: t for n, t in load_file(path).items()
        }
        save_file(renamed, path)
    return Made(Case("gemma3-wrapper", "Gemma3"), folder, model)


def randomise(model: Any, seed: int) -> None:
    """Weights of a size that keeps every layer's part in the answer visible, norms and biases included."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    kind = type(model).__name__
    centred = kind.startswith("Gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                # Embeddings are wide (one row is read); a matrix keeps the size of what goes through it.
                wide = "embed" in name or "wte" in name or "wpe" in name
                parameter.copy_(noise * (0.4 if wide else 1.4 * parameter.shape[1] ** -0.5))
            elif parameter.ndim == 3:  # experts [experts, out, in], of gpt-oss turned round
                parameter.copy_(noise * 1.4 * parameter.shape[1 if "GptOss" in kind else 2] ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.2)
            else:
                parameter.copy_(noise * 0.2 + (0.0 if centred else 1.0))


def published(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as it was written before transformers 5."""
    old = dict(config)
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    parameters = old.pop("rope_parameters", None) or {}
    if "full_attention" in parameters:
        old["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern", 6)
        parameters = parameters["full_attention"]
    scaling = dict(parameters)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            old[key] = scaling.pop(key)
    kind = scaling.get("rope_type", "default")
    if kind in ("linear", "dynamic", "yarn", "longrope"):
        scaling["type"] = scaling.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else scaling
    old.pop("layer_types", None)
    return old
