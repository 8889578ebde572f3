"""bitsandbytes, as transformers saves it. A module X of [rows, cols] stands in one of two forms.

4 bits (Dettmers et al. 2023): `X.weight` uint8 holds the codes of the flattened matrix, two a byte, the
first in the high half; each stands for a number of `X.weight.quant_map` [16] (NF4 or FP4), times the largest
size of its block of 64 (say) neighbours, blocks running on from row to row. The same bytes may stand as
floats, which is what `bnb_4bit_quant_storage` chooses. `X.weight.absmax` has those sizes, as floats or
quantized once more: codes of `X.weight.nested_quant_map` [256] times `X.weight.nested_absmax` by block, plus
`nested_offset`. `X.weight.quant_state.bitsandbytes__nf4` (or `__fp4`) is JSON in bytes that says the rest.

A stack of experts is `X` with `X.absmax` and so on, its blocks running on from expert to expert.

8 bits (Dettmers et al. 2022): `X.weight` int8 and `X.SCB`, the largest size of each row: weight * SCB / 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container
from typing import Any

import numpy as np

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Int8, Layout
from octavo.quant.format import F32, Tensors
from octavo.quant.nf4 import U8, in_blocks

_STATES = tuple(f"quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
_NESTED = ("nested_absmax", "nested_quant_map")
_STORAGE = {"uint8": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}
"""Dtypes that the bytes of codes stand in, and how many they hold."""
_LARGEST_STATE = 1 << 16
_BLOCK = range(1, 1 << 20)


class BitsAndBytes:
    """A bitsandbytes checkpoint; its tensors say all that its config does."""

    method = "bitsandbytes"
    unused: tuple[str, ...] = (r"\.weight_format$",)
    growth = 1.1

    def __init__(self, config: dict[str, Any]) -> None:
        del config

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.SCB" in present:
            return ("weight", "SCB")
        for weight, dot in (("weight", "weight."), ("", "")):
            if f"{stem}.{dot}absmax" in present:
                there = [word for word in (*_NESTED, *_STATES) if f"{stem}.{dot}{word}" in present]
                nested = _NESTED if any(word in _NESTED for word in there) else ()
                states = [word for word in there if word in _STATES]
                return (weight, *(f"{dot}{word}" for word in ("absmax", "quant_map", *nested, *states)))
        return ()

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        return _int8(tensors, rows, cols) if "SCB" in tensors else _four(tensors, rows, cols)


def _int8(tensors: Tensors, rows: int, cols: int) -> Int8:
    largest = tensors.floats("SCB", tensors.stored("SCB").shape)
    if largest.size != rows:
        raise tensors.error("SCB", f"has shape {list(largest.shape)}, expected [{rows}]")
    scale = (largest.reshape(rows, 1) / np.float32(127)).astype(np.float32)
    return Int8(tensors.ints("weight", "int8", (rows, cols)), scale, cols)


def _four(tensors: Tensors, rows: int, cols: int) -> Layout:
    """Of a stack of experts this one's share of the flattened numbers."""
    state, (expert, experts) = _state(tensors), tensors.stack
    count, block = rows * cols, _number(tensors, state, "blocksize")
    shape = [rows, cols] if experts == 1 and tensors.suffixes[0] else [experts, rows, cols]
    if state.get("shape", shape) != shape:
        said = str(state["shape"])[:60]
        raise tensors.error(_suffix(tensors), f"gives the shape {said}, expected {shape}")
    if experts > 1 and (count % block or count % 2):
        raise UnsupportedModel(f"bitsandbytes' blocks of {block} in {tensors.stem} hold several experts.")
    flat = _bytes(tensors, (experts * count + 1) // 2)
    flat = flat[expert * count // 2 : (expert * count + count + 1) // 2]
    codes = np.stack([flat >> 4, flat & 15], axis=-1).reshape(-1)[:count]
    table = tensors.floats(_word(tensors, "quant_map"), (16,))
    blocks = -(-count // block)
    sizes = _sizes(tensors, state, blocks * experts)[expert * blocks : (expert + 1) * blocks]
    return in_blocks(codes, table, sizes, block, rows, cols)


def _bytes(tensors: Tensors, count: int) -> U8:
    """The codes, two a byte, whatever dtype they stand in."""
    suffix = tensors.suffixes[0]
    wide = _STORAGE.get(tensors.stored(suffix).dtype, 1)
    words = tensors.get(suffix, tuple(_STORAGE), (-(-count // wide), 1)).data
    return np.ascontiguousarray(words).view(np.uint8).reshape(-1)[:count]


def _word(tensors: Tensors, word: str) -> str:
    """The suffix of a tensor beside the codes."""
    return f"weight.{word}" if tensors.suffixes[0] else word


def _sizes(tensors: Tensors, state: dict[str, Any], blocks: int) -> F32:
    """The largest size of each block."""
    if _word(tensors, "nested_absmax") not in tensors:
        return tensors.floats(_word(tensors, "absmax"), (blocks,))
    codes = tensors.ints(_word(tensors, "absmax"), "uint8", (blocks,))
    block = _number(tensors, state, "nested_blocksize")
    over = tensors.floats(_word(tensors, "nested_absmax"), (-(-blocks // block),))
    table = tensors.floats(_word(tensors, "nested_quant_map"), (256,))
    offset = state.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise tensors.error(_suffix(tensors), f"gives nested_offset {offset!r:.60}, expected a number")
    sizes = table[codes] * np.repeat(over, block)[:blocks] + np.float32(offset)
    return np.asarray(sizes, np.float32)


def _suffix(tensors: Tensors) -> str:
    """The last words of the tensor that holds the state."""
    found = [_word(tensors, suffix) for suffix in _STATES if _word(tensors, suffix) in tensors]
    if not found:
        raise tensors.error(
            _word(tensors, "absmax"), f"has no {_word(tensors, _STATES[0])} (or fp4) beside it"
        )
    return found[0]


def _state(tensors: Tensors) -> dict[str, Any]:
    suffix = _suffix(tensors)
    raw = tensors.ints(suffix, "uint8", (range(2, _LARGEST_STATE),))
    try:
        state = json.loads(raw.tobytes())
    except (ValueError, RecursionError) as error:
        raise tensors.error(suffix, f"is not JSON ({str(error)[:80]})") from None
    if not isinstance(state, dict):
        raise tensors.error(suffix, "is no JSON object")
    return state


def _number(tensors: Tensors, state: dict[str, Any], key: str) -> int:
    value = state.get(key)
    if type(value) is not int or value not in _BLOCK:
        raise tensors.error(_suffix(tensors), f"gives {key} {value!r:.60}, expected a positive number")
    return value
