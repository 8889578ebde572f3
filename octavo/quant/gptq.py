"""GPTQ (Frantar et al. 2022), as AutoGPTQ and GPTQModel store it.

A module X of `in` columns and `out` rows stands as:

- `X.qweight` int32 [in * bits / 32, out]: column by column a stream of codes, the lowest bits first;
- `X.qzeros` int32 [groups, out * bits / 32]: zero points, packed along the row. Version 1 of the format
  stores them less 1, taken off the packed word (3 bits: off each code), so that is where it is put back;
- `X.scales` [groups, out], and `X.g_idx` int32 [in], the group of each column, which is always written.

The number is scale * (code - zero). With act-order columns of one group lie apart: they are put side by
side, and the layout remembers their order.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Int4Group, Layout
from octavo.quant.codes import in_groups, turned, unpack_down, unpack_words
from octavo.quant.format import Tensors, flag, group_size, integer
from octavo.quant.patterns import Pattern

BITS = (2, 3, 4, 8)
_THIRDS = (0x24924924, 0x92492492, 0x49249249)
"""Earlier releases of GPTQModel took these off the words of 3-bit zero points in turn, and put them back."""


@dataclass(frozen=True)
class _Settings:
    """How one module is stored."""

    bits: int
    group: int | None
    symmetric: bool
    second: bool
    """Version 2 of the format: zero points as they are."""

    @classmethod
    def of(cls, config: dict[str, Any]) -> _Settings:
        stored = config.get("checkpoint_format") or config.get("format") or "gptq"
        if stored not in ("gptq", "gptq_v2"):
            raise UnsupportedModel(
                f"GPTQ's checkpoint_format {stored!r:.60} is not supported.", hint="Supported: gptq, gptq_v2."
            )
        if config.get("pack_dtype", "int32") != "int32":
            raise UnsupportedModel(f"GPTQ's pack_dtype is {config['pack_dtype']!r:.60}, expected int32.")
        bits = integer(config, "bits", BITS, "one of 2, 3, 4, 8")
        return cls(bits, group_size(config, default=-1), flag(config, "sym", True), stored == "gptq_v2")


class Gptq:
    """A GPTQ checkpoint. `dynamic` changes the settings of modules whose name a regular expression matches:
    `+:pattern` (or `pattern`) to other ones; `-:pattern` leaves the module as it was.
    """

    method = "gptq"
    unused: tuple[str, ...] = ()

    def __init__(self, config: dict[str, Any]) -> None:
        self._settings = _Settings.of(config)
        dynamic = config.get("dynamic") or {}
        if not isinstance(dynamic, dict):
            raise UnsupportedModel("The quantization config's dynamic is no object of patterns.")
        self._dynamic = [
            (
                Pattern(key.removeprefix("+:"), "The quantization config's dynamic has"),
                _Settings.of({**config, **value}),
            )
            for key, value in dynamic.items()
            if not key.startswith("-:") and isinstance(value, dict)
        ]

    @property
    def growth(self) -> float:
        # Codes of 2 and 3 bits stand in 4.
        return max(1.0, 4 / self._settings.bits)

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.qweight" not in present:
            return ()
        known = ("qweight", "qzeros", "scales")
        return (*known, "g_idx") if f"{stem}.g_idx" in present else known

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        settings = self._settings
        for pattern, changed in self._dynamic:
            if pattern.matches(tensors.stem):
                settings = changed
                break
        bits, group = settings.bits, min(settings.group or cols, cols)
        groups, padded = -(-cols // group), -(-cols // group) * group
        words = range(-(-cols * bits // 32), -(-padded * bits // 32) + 1)
        qweight = tensors.ints("qweight", "int32", (words, rows))
        width = -(-rows * bits // 32)
        # Of 3 bits some writers count one word for ten zero points.
        qzeros = tensors.ints("qzeros", "int32", (groups, range(width, max(width, -(-rows // 10)) + 1)))
        scale = np.ascontiguousarray(tensors.floats("scales", (groups, rows)).T)
        zero = np.ascontiguousarray(_zeros(qzeros, settings, rows).T)
        index = _group_of(tensors, cols, padded, groups, group)
        if index is None and bits == 4 and cols % 8 == 0:
            codes = turned(qweight).view(np.uint8)[:, : cols // 2]
            return Int4Group(
                codes, cols, scale, group, None if (zero == 8).all() else zero.astype(np.float32)
            )
        return in_groups(unpack_down(qweight, bits, cols), bits, scale, zero, group, index)


def _zeros(words: NDArray[Any], settings: _Settings, rows: int) -> NDArray[np.uint8]:
    """[groups, rows] zero points."""
    bits, middle = settings.bits, 1 << (settings.bits - 1)
    plain = unpack_words(words, bits, rows)
    # Some writers say version 1 and store version 2; where zero points are known it shows.
    if settings.second or (settings.symmetric and (plain == middle).all()):
        return plain
    stream = np.ascontiguousarray(words).view(np.uint32)
    if bits == 3:
        if settings.symmetric:
            thirds = np.resize(np.array(_THIRDS, np.uint32), stream.shape[1])
            if (back := unpack_words(stream + thirds, 3, rows)).min(initial=4) == back.max(initial=4) == 4:
                return back
        return (plain + np.uint8(1)) & np.uint8(7)
    ones = np.uint32(sum(1 << at for at in range(0, 32, bits)))
    return unpack_words(stream + ones, bits, rows)


def _group_of(tensors: Tensors, cols: int, padded: int, groups: int, group: int) -> NDArray[np.int32] | None:
    """The group of each column where it is not the next `group` columns' own; None where it is."""
    if "g_idx" not in tensors:
        return None
    index = tensors.ints("g_idx", "int32", (range(cols, padded + 1),))[:cols]
    if index.size and not (index.min() >= 0 and index.max() < groups):
        wrong = int(index.min()) if index.min() < 0 else int(index.max())
        raise tensors.error("g_idx", f"holds the group {wrong}, expected 0 to {groups - 1}")
    return None if np.array_equal(index, np.arange(cols) // group) else index
