"""The model's own sampling defaults (generation_config.json), as ``--generation-config`` selects them.

As in vLLM: a field that a client leaves unset takes the model's value when there is one, else the neutral
one; ``do_sample`` plays no part. ``max_new_tokens`` becomes the default of max_tokens, and when it comes
from ``--override-generation-config`` also its ceiling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import BadRequest, ConfigError
from octavo.types.sampling import SamplingParams

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class GenerationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults of one model; empty means neutral sampling."""

    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    """SamplingParams fields that the model sets."""
    max_tokens: int | None = None
    """Used when a request names none."""
    max_tokens_cap: int | None = None
    """No request gets more."""
    eos_ids: tuple[int, ...] = ()
    """End tokens in the order of the file."""

    def apply(self, fields: Mapping[str, Any]) -> SamplingParams:
        """SamplingParams from the fields that a client set (None counts as unset).

        Without max_tokens it stays None: the pipeline then takes :attr:`max_tokens` or the rest of the
        context, and knows that the client left it open. Raises BadRequest for a value out of range.
        """
        given = {key: value for key, value in fields.items() if value is not None}
        max_tokens = given.pop("max_tokens", None)
        if self.max_tokens_cap is not None and isinstance(max_tokens, (int, float)):
            max_tokens = min(max_tokens, self.max_tokens_cap)
        return SamplingParams(**{**self.defaults, **given, "max_tokens": max_tokens})


def token_ids(value: Any) -> tuple[int, ...]:
    """The ids of an ``eos_token_id`` entry: a number, a list of numbers, or nothing."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def load_generation_config(
    mode: str, model_folder: str | Path | None, override: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """Read the defaults. `mode`: ``auto`` (the model's folder), ``vllm`` (none), or a folder.

    End tokens are always taken from the model's own file, whatever the mode. A missing file under ``auto``
    means neutral defaults. Raises ConfigError for an unreadable file, a named folder without one, or a value
    that no request could have.
    """
    own = _read(Path(model_folder)) if model_folder is not None else None
    if mode == "auto":
        chosen = own
    elif mode == "vllm":
        chosen = None
    else:
        chosen = _read(Path(mode).expanduser())
        if chosen is None:
            raise ConfigError(
                f"--generation-config {mode}: there is no generation_config.json.",
                hint="Give auto, vllm, or a folder that has one.",
            )
    override = dict(override or {})
    merged = {**(chosen or {}), **override}
    defaults = {key: merged[key] for key in _FIELDS if merged.get(key) is not None}
    cap = override.get("max_new_tokens", override.get("max_tokens"))
    limit = cap if cap is not None else merged.get("max_new_tokens")
    try:
        SamplingParams(**defaults, max_tokens=limit)
    except BadRequest as error:
        raise ConfigError(f"The generation config is not usable: {error.message}") from None
    eos = override.get("eos_token_id", merged.get("eos_token_id", (own or {}).get("eos_token_id")))
    return GenerationConfig(defaults=defaults, max_tokens=limit, max_tokens_cap=cap, eos_ids=token_ids(eos))


def _read(folder: Path) -> dict[str, Any] | None:
    """The folder's generation_config.json (or the file itself), None when there is none."""
    path = folder if folder.is_file() else folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value
