"""PEFT's adapter_config.json: which modules an adapter changes, at what rank and with what factor.

The rules are PEFT's: `target_modules` is a list of names (a module's whole path or its end), one regular
expression of whole paths, or "all-linear"; `rank_pattern` and `alpha_pattern` are regular expressions of a
path's end. The factor is alpha / rank, with rsLoRA alpha / sqrt(rank) (Kalajdzievski 2023).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import AdapterError

FILE = "adapter_config.json"
_LIMIT_BYTES = 4 << 20
_MOST_PATTERNS = 10_000
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
"""The first number of a path is the layer's; an expert's stands behind it."""

_REFUSED: tuple[tuple[str, str], ...] = (
    ("modules_to_save", "it replaces whole modules of the base, so that it could not share them"),
    ("use_qalora", "its inputs are pooled in groups"),
    ("trainable_token_indices", "it changes the embedding's table"),
    ("layer_replication", "it repeats layers of the base"),
    ("alora_invocation_tokens", "it works on a part of the tokens alone (activated LoRA)"),
    ("kasa_config", "it cuts the base's weights down and scales between A and B (KaSA)"),
    ("arrow_config", "it chooses between adapters for each token (Arrow)"),
    ("use_bdlora", "its matrices are stored in blocks"),
    ("monteclora_config", "its adapters are drawn by chance"),
)
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_MERGE = "Merge it into the base with PEFT's merge_and_unload() and serve the result."


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says, checked."""

    rank: int
    alpha: float
    rslora: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    targets: frozenset[str] | re.Pattern[str] | None
    """None: every module."""
    parameters: frozenset[str]
    """Of modules that are adapted by parameter (stacked experts): their paths or the ends of these."""
    dora: bool
    """Outputs have magnitudes."""
    bias: bool
    """B has a bias of its own."""
    excluded: frozenset[str] | re.Pattern[str]
    layers: frozenset[int]
    """Only these; empty: all."""
    layer_patterns: tuple[re.Pattern[str], ...]
    base: str

    def selects(self, module: str) -> bool:
        """Whether PEFT would adapt the module of this path."""
        if _named(self.excluded, module):
            return False
        if self.targets is None or isinstance(self.targets, re.Pattern):
            return self.targets is None or self.targets.fullmatch(module) is not None
        if not _named(self.targets, module):
            return False
        if not self.layers or module in self.targets:
            return True
        found = next((m for p in self.layer_patterns if (m := p.match(module))), None)
        return found is not None and int(found.group(1)) in self.layers

    def selects_parameter(self, path: str) -> bool:
        """Whether PEFT would adapt the parameter of this path, a module's and the parameter's own name."""
        return bool(self.parameters) and _named(self.parameters, path)

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """The factor on the module's product."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(path: Path, max_rank: int) -> AdapterConfig:
    """The file at `path`. Raises AdapterError for what it asks and Octavo does not do, and for nonsense."""
    said = read_json(path)
    kind = said.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind!r}; only LORA adapters are applied.")
    for key, why in _REFUSED:
        if said.get(key):
            raise AdapterError(f"{path}: {key} is {_short(said[key])}: {why}.", hint=_MERGE)
    if said.get("bias", "none") not in ("none", "all", "lora_only", None):
        raise AdapterError(f"{path}: bias is {_short(said['bias'])}; PEFT knows none, all and lora_only.")
    start = said.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights is {start[:40]!r}, which changes the base's weights as well.",
            hint="Save it with path_initial_model_for_weight_conversion, which makes a plain adapter of it.",
        )
    ranks = _patterns(path, said, "rank_pattern")
    parameters = _names(path, "target_parameters", said.get("target_parameters") or [])
    if isinstance(parameters, re.Pattern):
        raise AdapterError(f"{path}: target_parameters is one text; expected a list of names.")
    return AdapterConfig(
        rank=_rank(path, "r", said.get("r"), max_rank),
        alpha=_alpha(path, "lora_alpha", said.get("lora_alpha", 8)),
        rslora=bool(said.get("use_rslora")),
        ranks=tuple((pattern, _rank(path, "rank_pattern", rank, max_rank)) for pattern, rank in ranks),
        alphas=tuple(
            (pattern, _alpha(path, "alpha_pattern", alpha))
            for pattern, alpha in _patterns(path, said, "alpha_pattern")
        ),
        targets=_targets(path, said, parameters),
        parameters=parameters,
        dora=bool(said.get("use_dora")),
        bias=bool(said.get("lora_bias")),
        excluded=_names(path, "exclude_modules", said.get("exclude_modules") or []),
        layers=_layers(path, said.get("layers_to_transform")),
        layer_patterns=_layer_patterns(path, said.get("layers_pattern")),
        base=str(said.get("base_model_name_or_path") or "")[:200],
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a file. Raises AdapterError."""
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise AdapterError(f"{path} is larger than {_LIMIT_BYTES} bytes.")
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} is not valid JSON.", hint="Download it again.") from None
    if not isinstance(said, dict):
        raise AdapterError(f"{path} is not an object of names and values.")
    return said


def _rank(path: Path, key: str, value: Any, max_rank: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(f"{path}: {key} has the rank {_short(value)}; a rank is a whole number from 1.")
    if value > max_rank:
        raise AdapterError(
            f"{path}: {key} has the rank {_short(value)}, more than the {max_rank} of --max-lora-rank.",
            hint="Start with a larger --max-lora-rank." if value <= 512 else "",
        )
    return value


def _alpha(path: Path, key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e6:
        raise AdapterError(f"{path}: {key} is {_short(value)}; expected a number below a million.")
    return float(value)


def _targets(
    path: Path, said: Mapping[str, Any], parameters: frozenset[str]
) -> frozenset[str] | re.Pattern[str] | None:
    targets = said.get("target_modules")
    if targets is None and parameters:
        return frozenset()
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        return None
    return _names(path, "target_modules", targets)


def _names(path: Path, key: str, value: Any) -> frozenset[str] | re.Pattern[str]:
    if isinstance(value, str):
        return _compiled(path, key, value, value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{path}: {key} is {_short(value)}; expected names or a regular expression.")
    return frozenset(value)


def _named(names: frozenset[str] | re.Pattern[str], module: str) -> bool:
    """Whether the path, or its end from some dot on, is among the names."""
    if isinstance(names, re.Pattern):
        return names.fullmatch(module) is not None
    words = module.split(".")
    return any(".".join(words[i:]) in names for i in range(len(words)))


def _layers(path: Path, value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    layers = [value] if isinstance(value, int) else value
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"{path}: layers_to_transform is {_short(value)}; expected numbers of layers.")
    return frozenset(layers)


def _layer_patterns(path: Path, value: Any) -> tuple[re.Pattern[str], ...]:
    patterns = [value] if isinstance(value, str) else value or []
    if not isinstance(patterns, list) or not all(isinstance(word, str) for word in patterns):
        raise AdapterError(f"{path}: layers_pattern is {_short(value)}; expected names.")
    made = (
        _compiled(path, "layers_pattern", word, rf"(?:.*?\.)?{word}\.(\d+)\.") for word in patterns if word
    )
    return tuple(made) or (_LAYER,)


def _patterns(path: Path, said: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], Any]]:
    found = said.get(key) or {}
    if not isinstance(found, dict) or len(found) > _MOST_PATTERNS:
        raise AdapterError(f"{path}: {key} must be an object of at most {_MOST_PATTERNS} patterns.")
    return [
        (_compiled(path, key, pattern, rf"(?:.*\.)?(?:{pattern})$"), value)
        for pattern, value in found.items()
    ]


def _compiled(path: Path, key: str, pattern: str, whole: str) -> re.Pattern[str]:
    """A regular expression that cannot take long: it repeats no group, and few things at all."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if len(pattern) > 4096 or repeats > 6 or re.search(r"\)[*+{]", pattern):
        raise AdapterError(
            f"{path}: {key} has the pattern {_short(pattern)}, which could take for ever to match.",
            hint="List the names of the modules, or repeat no group and at most 6 things.",
        )
    try:
        return re.compile(whole)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(f"{path}: {key}: {_short(pattern)} is no regular expression: {error}.") from None


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = "a very large number"
    return text if len(text) <= 80 else text[:77] + "..."
