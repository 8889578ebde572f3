"""``--dummy NAME``: the shapes of published models, so that speed can be measured without a download.

The numbers are those of the models' published config.json files. A dummy's tokenizer has a word for each id.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError


def _shape(
    architecture: str,
    *,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    context: int,
    theta: float,
    tied: bool,
    eps: float = 1e-6,
    **more: Any,
) -> dict[str, Any]:
    kind = architecture.removesuffix("ForCausalLM").lower()
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


_LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _shape(
        "Qwen2ForCausalLM", hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2,
        vocab=151936, context=32768, theta=1e6, tied=True,
    ),
    "qwen2.5-1.5b": _shape(
        "Qwen2ForCausalLM", hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2,
        vocab=151936, context=32768, theta=1e6, tied=True,
    ),
    "llama-3.2-1b": _shape(
        "LlamaForCausalLM", hidden=2048, ffn=8192, layers=16, heads=32, kv_heads=8,
        vocab=128256, context=131072, theta=5e5, tied=True, eps=1e-5, head_dim=64, rope_scaling=_LLAMA3_ROPE,
    ),
    "qwen3-4b": _shape(
        "Qwen3ForCausalLM", hidden=2560, ffn=9728, layers=36, heads=32, kv_heads=8,
        vocab=151936, context=40960, theta=1e6, tied=True, head_dim=128, attention_bias=False,
    ),
    "mistral-7b": _shape(
        "MistralForCausalLM", hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8,
        vocab=32768, context=32768, theta=1e6, tied=False, eps=1e-5, head_dim=128, sliding_window=None,
    ),
}  # fmt: skip


def shape(name: str) -> dict[str, Any]:
    """The config.json of a shape; ConfigError when there is none of this name."""
    found = SHAPES.get(name.lower())
    if found is None:
        raise ConfigError(f"--dummy: there is no shape {name!r}.", hint=f"There are: {', '.join(SHAPES)}.")
    return found


def write_shape(folder: Path, name: str) -> None:
    """config.json and tokenizer.json of a dummy; ConfigError when there is no such shape."""
    config = shape(name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    vocab = {f"w{index}": index for index in range(config["vocab_size"])}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def dummy_folder(name: str) -> Path:
    """A temporary folder with the shape `name`, removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-dummy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_shape(folder, name)
    return folder
