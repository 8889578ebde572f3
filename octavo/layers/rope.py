"""Rotary embeddings from config.json's parameters: every rope_type that dense checkpoints use.

Formulas: Su et al. 2021 (RoFormer); linear: Chen et al. 2023; dynamic NTK: bloc97 2023; YaRN: Peng et al.
2023; LongRoPE: Ding et al. 2024; llama3: the Llama 3.1 release. The numbers are those of transformers'
modeling_rope_utils: frequencies are made in float32, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.config.arch import Arch
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.contract import Rope

F32 = NDArray[Any]
"""A float32 array."""


class RopeParams:
    """One layer type's rope parameters, read with checks. `original` is the length before scaling."""

    def __init__(
        self, values: dict[str, Any], head_dim: int, max_positions: int, original: int | None
    ) -> None:
        self.values = values
        self.kind = str(values.get("rope_type") or values.get("type") or "default")
        self.max_positions = max_positions
        self.base = self.number("rope_theta", 10000.0)
        self.dim = int(head_dim * self.number("partial_rotary_factor", 1.0))
        if not 0 < self.dim <= head_dim or self.dim % 2:
            raise CheckpointError(
                f"config.json: rotary dimension {self.dim} does not fit head_dim {head_dim}: it must be "
                "even and no larger."
            )
        self.original = original or self.integer("original_max_position_embeddings", max_positions)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; without a default it must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(
                f"config.json: rope {self.kind}: {key} must be a positive number, not {value!r:.60}."
            )
        return float(value)

    def integer(self, key: str, default: int) -> int:
        """A positive whole number."""
        value = self.number(key, default)
        if value != int(value):
            raise CheckpointError(
                f"config.json: rope {self.kind}: {key} must be a whole number, not {value!r:.60}."
            )
        return int(value)

    def optional(self, key: str) -> float | None:
        """A positive number or None."""
        return None if self.values.get(key) is None else self.number(key)

    def factors(self, key: str) -> F32:
        """A list of dim/2 positive numbers."""
        value = self.values.get(key)
        half = len(self.powers())
        if (
            not isinstance(value, list)
            or len(value) != half
            or not all(isinstance(x, int | float) and x > 0 for x in value)
        ):
            raise CheckpointError(
                f"config.json: rope {self.kind}: {key} must be a list of {half} positive numbers."
            )
        return np.array(value, np.float32)

    def powers(self) -> F32:
        """base ** (2i / dim), rounded once to float32."""
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        return np.power(float(self.base), exponent.astype(np.float64)).astype(np.float32)


def rope(c: Arch, layer: int, *, interleaved: bool = False) -> Rope:
    """The rotary embedding of one layer; CheckpointError names a bad key of config.json."""
    made = make_rope(c.rope_values(layer), c.head_dim, c.max_positions, c.original_max_positions)
    return replace(made, interleaved=interleaved)


def make_rope(values: dict[str, Any], head_dim: int, max_positions: int, original: int | None = None) -> Rope:
    """The Rope of rope parameters in transformers' spelling. `original` is
    `original_max_position_embeddings` beside the rope parameters, which goes before the one inside.
    UnsupportedModel for an unknown rope_type.
    """
    params = RopeParams(values, head_dim, max_positions, original)
    if params.kind not in _BUILDERS:
        raise UnsupportedModel(
            f"config.json: rope_type {params.kind!r:.60} is not supported.",
            hint=f"Supported: {', '.join(_BUILDERS)}.",
        )
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            made = _BUILDERS[params.kind](params)
    except ArithmeticError as error:
        raise CheckpointError(
            f"config.json: rope {params.kind}: its parameters make no angles ({error})."
        ) from None
    if not all(math.isfinite(x) for x in made.inv_freq + (made.long_inv_freq or ())):
        raise CheckpointError(
            f"config.json: rope {params.kind}: its parameters make frequencies that are not finite."
        )
    return made


def _floats(values: F32) -> tuple[float, ...]:
    return tuple(float(x) for x in values.astype(np.float32))


def _default(p: RopeParams) -> Rope:
    return Rope(_floats(1 / p.powers()), base=p.base)


def _linear(p: RopeParams) -> Rope:
    return Rope(_floats(1 / p.powers() / np.float32(p.number("factor"))), base=p.base)


def _dynamic(p: RopeParams) -> Rope:
    if p.dim <= 2:
        raise CheckpointError(f"config.json: rope dynamic needs a rotary dimension above 2, not {p.dim}.")
    return Rope(
        _floats(1 / p.powers()),
        base=p.base,
        switch_tokens=p.max_positions,
        dynamic_factor=p.number("factor"),
    )


def _llama3(p: RopeParams) -> Rope:
    factor, low, high = p.number("factor"), p.number("low_freq_factor"), p.number("high_freq_factor")
    if high <= low:
        raise CheckpointError(
            f"config.json: rope llama3: high_freq_factor {high} must exceed low_freq_factor {low}."
        )
    inv = 1 / p.powers()
    wavelength = np.float32(2 * math.pi) / inv
    smooth = (np.float32(p.original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * inv / np.float32(factor) + smooth * inv
    slow = wavelength > p.original / low
    fast = wavelength < p.original / high
    return Rope(_floats(np.where(slow, inv / np.float32(factor), np.where(fast, inv, between))), base=p.base)


def _yarn_magnitude(p: RopeParams, factor: float) -> float:
    given = p.optional("attention_factor")
    if given is not None:
        return given
    mscale, mscale_all = p.values.get("mscale"), p.values.get("mscale_all_dim")

    def stretch(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    if mscale and mscale_all:
        return stretch(p.number("mscale")) / stretch(p.number("mscale_all_dim"))
    return stretch(1.0)


def _yarn(p: RopeParams) -> Rope:
    factor = p.optional("factor") or p.max_positions / p.original

    def dimension(rotations: float) -> float:
        """The dimension whose wave turns `rotations` times within the original length."""
        return p.dim * math.log(p.original / (rotations * 2 * math.pi)) / (2 * math.log(p.base))

    low, high = dimension(p.number("beta_fast", 32.0)), dimension(p.number("beta_slow", 1.0))
    if p.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, p.dim - 1)
    high += 0.001 if low == high else 0.0
    powers = p.powers()
    ramp = (np.arange(p.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = 1 - np.clip(ramp, 0, 1)
    inv = 1 / (np.float32(factor) * powers) * (1 - keep) + 1 / powers * keep
    return Rope(_floats(inv), magnitude=_yarn_magnitude(p, factor), base=p.base)


def _longrope(p: RopeParams) -> Rope:
    factor = p.optional("factor") or p.max_positions / p.original
    magnitude = p.optional("attention_factor")
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(p.original))
    powers = p.powers()
    return Rope(
        _floats(1 / (p.factors("short_factor") * powers)),
        magnitude=magnitude,
        base=p.base,
        switch_tokens=p.original,
        long_inv_freq=_floats(1 / (p.factors("long_factor") * powers)),
    )


def _ntk(p: RopeParams) -> Rope:
    """GTE's: the base times the factor, and all frequencies slower by factor^(2 / dim)."""
    factor = p.number("factor")
    base = p.base * factor
    powers = np.power(base, np.arange(0, p.dim, 2, dtype=np.float64) / p.dim)
    return Rope(_floats((1 / powers / factor ** (2 / p.dim)).astype(np.float32)), base=base)


def _factors(p: RopeParams) -> Rope:
    """Divisors of the plain frequencies, as a GGUF file lists them."""
    return Rope(_floats(1 / p.powers() / p.factors("factors")), base=p.base)


_BUILDERS: dict[str, Callable[[RopeParams], Rope]] = {
    "default": _default,
    "factors": _factors,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "ntk": _ntk,
}
