"""What a model is, in the few numbers that a person asks for; told by the doors, used by nothing else."""

from __future__ import annotations

import msgspec


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Empty or 0 where it is not known."""

    architecture: str = ""
    """config.json's word, e.g. Qwen2ForCausalLM."""
    family: str = ""
    """The kind of model in one short word, e.g. qwen2."""
    storage: str = ""
    """gguf, safetensors, pytorch or dummy."""
    quantization: str = ""
    """How the weights stand on disk or, where they are rounded on loading, in memory: BF16, Q4_K_M, gptq."""
    parameters: int = 0
    weight_bytes: int = 0
    """Size of the weights' files."""
    context: int = 0
    """The longest context that the checkpoint states, in tokens."""
    layers: int = 0
    hidden: int = 0
    ffn: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocab: int = 0
