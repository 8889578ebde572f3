"""A whole checkpoint of random weights on the disk, for engines that read nothing but files.

Kept under ``OCTAVO_CACHE/bench`` (a temporary folder when that is off): the next comparison finds it there.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.shapes import shape as config_of
from octavo.config.environment import read_environment
from octavo.ops.contract import Param
from octavo.ops.layouts import f32_to_bf16
from octavo.weights.dummy import DummyWeights

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SAFETENSORS = {"bfloat16": "BF16", "int8": "I8", "int32": "I32"}

Tensor = tuple[str, str, tuple[int, ...], Callable[[], NDArray[Any]]]
"""(name, dtype as in _SAFETENSORS, shape, what makes its numbers when it is their turn)."""


@cache
def kept() -> Path:
    """The folder that holds what benchmarks write once and read again."""
    root = read_environment().cache_root
    if root == "off":
        folder = Path(tempfile.mkdtemp(prefix="octavo-bench-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (Path(root).expanduser() if root else Path(home) / "octavo") / "bench"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def whole_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which `write` fills when it is not there; one that was begun and not ended is never seen."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write(partial)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def random_checkpoint(name: str) -> Path:
    """The folder of a checkpoint of shape `name` (octavo.bench.shapes) in bfloat16: as a download would be.

    ConfigError when there is no such shape.
    """
    config = config_of(name)
    return whole_folder(kept() / name.lower(), lambda folder: _write(folder, config))


def _write(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, config["vocab_size"])
    dummy = DummyWeights("bfloat16")

    def made(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        kind = "vector" if len(shape) == 1 else "table" if "embed" in name else "matrix"
        found = dummy.make(Param(shape, kind=kind, name=name))
        return f32_to_bf16(found.dequantize()) if kind == "vector" else found.data

    tensors = [
        (name, "bfloat16", shape, lambda name=name, shape=shape: made(name, shape))
        for name, shape in tensor_shapes(config)
    ]
    write_safetensors(folder / "model.safetensors", tensors)


def tensor_shapes(config: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama-like checkpoint and their shapes, under their Hugging Face names."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    kind = config["model_type"]
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (config["vocab_size"], hidden))]
    for index in range(config["num_hidden_layers"]):
        layer: list[tuple[str, tuple[int, ...]]] = [
            ("input_layernorm.weight", (hidden,)),
            ("self_attn.q_proj.weight", (query, hidden)),
            ("self_attn.k_proj.weight", (key, hidden)),
            ("self_attn.v_proj.weight", (key, hidden)),
            ("self_attn.o_proj.weight", (hidden, query)),
            ("post_attention_layernorm.weight", (hidden,)),
            ("mlp.gate_proj.weight", (ffn, hidden)),
            ("mlp.up_proj.weight", (ffn, hidden)),
            ("mlp.down_proj.weight", (hidden, ffn)),
        ]
        if kind == "qwen2":
            layer += [(f"self_attn.{one}_proj.bias", (query if one == "q" else key,)) for one in "qkv"]
        if kind == "qwen3":
            layer += [(f"self_attn.{one}_norm.weight", (head_dim,)) for one in "qk"]
        found += [(f"model.layers.{index}.{name}", shape) for name, shape in layer]
    found.append(("model.norm.weight", (hidden,)))
    if not config["tie_word_embeddings"]:
        found.append(("lm_head.weight", (config["vocab_size"], hidden)))
    return found


def write_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write tensors one after another, so that only one is in memory."""
    listed = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, dtype, shape, _ in listed:
        end = place + math.prod(shape) * {"BF16": 2, "I8": 1, "I32": 4}[_SAFETENSORS[dtype]]
        header[name] = {"dtype": _SAFETENSORS[dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for *_, make in listed:
            file.write(np.ascontiguousarray(make()).data)


# ---- a tokenizer of any size ----------------------------------------------------------------------------


def write_tokenizer(folder: Path, size: int) -> None:
    """Files of a byte-level BPE tokenizer with `size` entries (at least 300), made up, in Qwen2's form.

    The merges join every pair of bytes, then every such pair with a third byte, until there are enough.
    """
    letters = _byte_letters()
    vocab = {letter: index for index, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for left, right in _pairs(letters):
        if len(vocab) == size - len(_SPECIAL):
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    special = {text: len(vocab) + index for index, text in enumerate(_SPECIAL)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, text) for text, index in special.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _QWEN2_SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(index): _added(None, text) for text, index in special.items()},
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[0],
        "model_max_length": 32768,
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2), encoding="utf-8")


_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words; engines know a tokenizer by it."""


def _added(index: int | None, text: str) -> dict[str, Any]:
    facts = {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {**({} if index is None else {"id": index}), **facts, "special": True}


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes: printable ones as they are, the others from U+0100 on (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return [*map(chr, plain), *(chr(0x100 + at) for at in range(len(others)))]


def _pairs(letters: list[str]) -> Iterable[tuple[str, str]]:
    """Merges in an order in which each joins what is there already, none of them twice."""
    doubles = [(left, right) for left in letters for right in letters]
    yield from doubles
    for left, right in doubles:
        for third in letters:
            yield left + right, third
