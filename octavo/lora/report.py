"""What an adapter is and whether it can be served, for `octavo inspect`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octavo.errors import AdapterError, OctavoError
from octavo.layers.decoder import Decoder
from octavo.lora import config as peft
from octavo.lora.config import AdapterConfig
from octavo.lora.load import AdapterLoader, is_bias, modules_of, weights_in
from octavo.lora.tensors import F32
from octavo.weights.checkpoint import Checkpoint, open_checkpoint


@dataclass
class AdapterReport:
    """Everything that `octavo inspect` says of an adapter."""

    model: str
    base: str | None = None
    """The model that it was made for, as it says itself."""
    checked_against: str | None = None
    """The base that was looked at; None: only its own files were."""
    rank: int = 0
    """The largest of its modules'."""
    alpha: float | None = None
    kinds: list[str] = field(default_factory=list)
    """rsLoRA, DoRA, ..."""
    modules: dict[str, int] = field(default_factory=dict)
    """The last word of a module's path -> how many there are."""
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    """Name -> bytes."""
    runs: bool = False
    why_not: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def report_on(name: str, folder: Path, base: tuple[str, Decoder, str] | None, max_rank: int) -> AdapterReport:
    """The report on the adapter in `folder`. `base`: the name, the declaration and the dtype of a model that
    it shall fit. With one, the numbers are read, too; without, only headers are.
    """
    report = AdapterReport(name, checked_against=base[0] if base else None)
    try:
        _describe(report, folder)
        said = peft.read_config(folder / peft.FILE, max_rank)
        if base is None:
            _check_alone(said, folder)
        else:
            AdapterLoader(base[1], _ones(base[1]), base[2], max_rank).read(name, str(folder))
        report.runs = True
    except OctavoError as error:
        report.why_not = str(error)
    return report


def base_of(folder: Path) -> str | None:
    """The model that an adapter says it was made for."""
    try:
        said = peft.read_json(folder / peft.FILE).get("base_model_name_or_path")
    except AdapterError:
        return None
    return said[:200] if isinstance(said, str) and said else None


def _describe(report: AdapterReport, folder: Path) -> None:
    """What the files say, whether it can be applied or not."""
    report.base = base_of(folder)
    said = peft.read_json(folder / peft.FILE)
    alpha = said.get("lora_alpha")
    report.alpha = float(alpha) if isinstance(alpha, int | float) and abs(alpha) < 1e300 else None
    flags = {"use_rslora": "rsLoRA", "use_dora": "DoRA", "lora_bias": "bias of B"}
    report.kinds = [kind for flag, kind in flags.items() if said.get(flag)]
    kind = said.get("peft_type", "LORA")
    if kind != "LORA":
        report.kinds.append(str(kind)[:40])
    file = weights_in(folder)
    report.files = {file.name: file.stat().st_size}
    checkpoint = open_checkpoint(file)
    shapes = {name: checkpoint.described(name) for name in checkpoint.names()}
    report.dtypes = sorted({dtype for dtype, _ in shapes.values()})
    report.parameters = sum(math.prod(shape) for _, shape in shapes.values())
    modules = modules_of(checkpoint, file, lambda *_: True)
    ranks = [shapes[own["B"]][1][-1] for own in modules.values() if shapes.get(own.get("B", ""), (0, ()))[1]]
    report.rank = max(ranks, default=0)
    report.modules = dict(sorted(Counter(path.rpartition(".")[2] for path in modules).items()))


def _check_alone(said: AdapterConfig, folder: Path) -> None:
    """Raise AdapterError for what can be seen without a base: halves that are missing, ranks that differ."""
    file = weights_in(folder)
    checkpoint: Checkpoint = open_checkpoint(file)
    chosen = 0
    for module, own in modules_of(checkpoint, file, lambda *_: True).items():
        if is_bias(own):
            continue
        if missing := {"A", "B"} - own.keys():
            raise AdapterError(f"{file} has {module}, but no lora_{min(missing)} of it.")
        a, b = (checkpoint.described(own[side])[1] for side in "AB")
        rank = said.rank_of(module)
        if not said.parameters and (len(a) != 2 or len(b) != 2 or not rank == a[0] == b[1]):
            raise AdapterError(
                f"{own['A']} and {own['B']} in {file} have the shapes {list(a)} and {list(b)}; "
                f"expected [{rank}, inputs] and [outputs, {rank}].",
            )
        chosen += said.selects(module) or bool(said.parameters)
    if not chosen:
        raise AdapterError(f"{file} holds no LoRA weights of its target_modules.")


def _ones(model: Decoder) -> Any:
    """Rows of the base where none are loaded: DoRA's norms need some."""
    widths = {name: param.shape[-1] if len(param.shape) > 1 else 1 for name, param in model.named_params()}

    def rows(name: str, first: int, last: int) -> F32:
        return np.ones((last - first, widths[name.partition("#")[0]]), np.float32)

    return rows
