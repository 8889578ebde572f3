"""PEFT's adapter files: from a folder to the parts that a model's matrices add.

A tensor is named `base_model.model.PATH.lora_A.weight` ([rank, in]) or `lora_B` ([out, rank]), PATH being the
module's in transformers. A module that Octavo keeps in one matrix with others (query, key, value) becomes a
part of that matrix. `lora/tensors.py` reads the numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.config import machine
from octavo.errors import AdapterError, CheckpointError, NotFound, OutOfMemory
from octavo.layers.decoder import Decoder
from octavo.log import logger
from octavo.lora import config as peft
from octavo.lora.config import AdapterConfig
from octavo.lora.places import places_of
from octavo.lora.tensors import BaseRows, Reader, Tensors
from octavo.ops.adapters import AdapterPart, AdapterParts
from octavo.ops.layouts import Dense
from octavo.types.lora import Adapter
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.hub import resolve_model

log = logger(__name__)

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_DOWNLOAD = (peft.FILE, *_WEIGHTS)
_WRAPS = r"(?:(?:base_model\.model|_orig_mod|module)\.){0,4}"
"""PEFT's name for what it wraps, torch.compile's and DistributedDataParallel's; one wrap may hold another.
There is an end to them, so that a name made for it does not take long.
"""
_ROOT = rf"{_WRAPS}(?P<module>.+?)"
_TENSORS: tuple[tuple[str, str | None, re.Pattern[str]], ...] = (
    ("linear", None, re.compile(rf"{_ROOT}\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")),
    ("embedding", None, re.compile(rf"{_ROOT}\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?")),
    ("", "magnitude", re.compile(rf"{_ROOT}\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?")),
    ("", "bias", re.compile(rf"{_ROOT}\.lora_B(?:\.[^.]+)?\.bias")),
    ("", "own bias", re.compile(rf"{_ROOT}(?:\.base_layer)?\.bias")),
)
"""(kind of module, if it shows; which of its tensors, if not the group `side`; the name)."""
_COPY = re.compile(rf"{_ROOT}(?:\.base_layer)?\.weight")
"""PEFT saves the base's own embedding and output matrix beside adapters of these, changed or not."""
_INNER = ".base_layer"
"""What PEFT calls the inner of two wraps around one module: experts whose two parameters are both adapted."""
_LISTED = 5


@dataclass(frozen=True)
class Loaded:
    """An adapter and its numbers."""

    adapter: Adapter
    parts: AdapterParts
    rank: int
    """The largest of its modules'."""
    nbytes: int


class AdapterLoader:
    """Reads adapters for one model. `dtype` is what float32 numbers are kept in (the model's own, mostly)."""

    def __init__(
        self, model: Decoder, rows: BaseRows, dtype: str, max_rank: int, *, forced: bool = False
    ) -> None:
        """`rows`: ops.adapters.Adaptable.base_rows of the model. `forced`: numbers stored narrower become
        `dtype` as well.
        """
        self._places = places_of(model)
        self._rows = rows
        self._dtype = dtype
        self._forced = forced
        self._max_rank = max_rank

    def read(self, name: str, path: str) -> Loaded:
        """The adapter in the folder (or hub id) `path`. Raises NotFound when there is none, AdapterError for
        one that cannot be applied to this model.
        """
        folder = resolve_model(path, allow_patterns=_DOWNLOAD)
        if not (folder / peft.FILE).is_file():
            raise NotFound(f"No adapter found for {path}: there is no {peft.FILE} in {folder}.")
        weights = weights_in(folder)
        said = peft.read_config(folder / peft.FILE, self._max_rank)
        free, size = machine.free_memory_bytes(), weights.stat().st_size
        if size > free:
            raise OutOfMemory(f"{weights} takes {size:,} bytes of memory; {free:,} are free.")
        adapter = Adapter(name, str(folder), _digest(folder / peft.FILE, weights))
        try:
            checkpoint = open_checkpoint(weights)
        except CheckpointError as error:
            raise AdapterError(str(error)) from None
        parts, rank = self._parts(said, checkpoint, weights)
        nbytes = sum(part.a.nbytes + part.b.nbytes for own in parts.values() for part in own)
        return Loaded(adapter, parts, rank, nbytes)

    def again(self, adapter: Adapter) -> AdapterParts:
        """The numbers of an adapter that was read before. AdapterError when its files are no longer those."""
        loaded = self.read(adapter.name, adapter.path)
        if loaded.adapter.digest != adapter.digest:
            raise AdapterError(f"The files of the adapter {adapter.name!r} in {adapter.path} have changed.")
        return loaded.parts

    def _parts(self, said: AdapterConfig, checkpoint: Checkpoint, file: Path) -> tuple[AdapterParts, int]:
        sides = modules_of(checkpoint, file, self._is_copy)
        stacked, plain = _stacked(sides, self._places.stacks)
        chosen = {
            module: tensors
            for module, tensors in plain.items()
            if said.selects(module) or said.selects_parameter(f"{module}.weight") or is_bias(tensors)
        }
        if len(chosen) < len(plain):
            log.warning(
                "%s: %d of its %d modules are not in target_modules and are left out, as PEFT does.",
                file,
                len(plain) - len(chosen),
                len(sides),
            )
        self._refuse_unknown(said, file, list(chosen))
        reader = Reader(checkpoint, said, self._dtype, self._forced, self._rows)
        found: dict[str, list[AdapterPart]] = {}
        for module, tensors in chosen.items():
            place = self._places.modules[module]
            if place.table != (tensors["kind"] == "embedding") and not is_bias(tensors):
                raise AdapterError(
                    f"{file} has tensors of {module} that are those of another kind of module."
                )
            found.setdefault(place.name, []).append(reader.part(module, tensors, place))
        for path, layers in stacked.items():
            for name, part in reader.stack(path, layers, self._places.stacks[path]):
                found.setdefault(name, []).append(part)
        if not found:
            raise AdapterError(f"{file} holds no LoRA weights for this model.")
        rank = max(part.b.shape[1] for own in found.values() for part in own)
        return {name: _one_dtype(own) for name, own in found.items()}, rank

    def _is_copy(self, module: str, shape: tuple[int, ...]) -> bool:
        """Whether a whole matrix in an adapter's file is one that the base has, too."""
        place = self._places.modules.get(module)
        return place is not None and module in self._places.tables and shape == (place.rows, place.columns)

    def _refuse_unknown(self, said: AdapterConfig, file: Path, modules: list[str]) -> None:
        unknown = sorted(module for module in modules if module not in self._places.modules)
        if not unknown:
            return
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        made_for = f" The adapter was made for {said.base}." if said.base else ""
        raise AdapterError(
            f"{file} adapts {len(unknown)} modules (of {len(modules)}) that are no plain matrices of this "
            f"model: {', '.join(unknown[:_LISTED])}{more}.{made_for}",
            hint="Does it belong to this base?",
        )


def weights_in(folder: Path) -> Path:
    """The file with an adapter's numbers. Raises NotFound."""
    weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise NotFound(f"No adapter found for {folder}: it has none of {', '.join(_WEIGHTS)}.")
    return weights


def modules_of(
    checkpoint: Checkpoint, file: Path, is_copy: Callable[[str, tuple[int, ...]], bool]
) -> dict[str, Tensors]:
    """The tensors of each module, by its path; copies of the base left out.

    Raises AdapterError for a tensor of another kind.
    """
    found: dict[str, Tensors] = {}
    strange: list[str] = []
    for name in checkpoint.names():
        read = _read_name(name) if len(name) < 1000 else None
        if read is None:
            copy = _COPY.fullmatch(name) if len(name) < 1000 else None
            if copy is None or not is_copy(copy["module"], checkpoint.get(name).shape):
                strange.append(name[:200])
            continue
        module, side, kind = read
        sides = found.setdefault(module, {"kind": ""})
        if side in sides:
            raise AdapterError(f"{file} holds more than one adapter: {sides[side]} and {name}.")
        sides[side] = name
        sides["kind"] = kind or sides["kind"]
    if strange:
        more = f" and {len(strange) - _LISTED} more" if len(strange) > _LISTED else ""
        raise AdapterError(
            f"{file} holds {len(strange)} tensors that are no lora_A or lora_B of a linear module: "
            f"{', '.join(strange[:_LISTED])}{more}.",
            hint="Whole modules of the base are not replaced.",
        )
    return found


def is_bias(tensors: Tensors) -> bool:
    """Whether nothing of a module is changed but its bias."""
    return tensors.keys() == {"kind", "own bias"}


def _read_name(name: str) -> tuple[str, str, str] | None:
    """(module, which of its tensors, kind of module) of a tensor's name."""
    for kind, side, pattern in _TENSORS:
        if match := pattern.fullmatch(name):
            return match["module"], side or match["side"], kind
    return None


def _stacked(
    sides: Mapping[str, Tensors], stacks: Container[str]
) -> tuple[dict[str, dict[int, Tensors]], dict[str, Tensors]]:
    """(the tensors of stacked experts, by path and by how deep PEFT has nested them; those of modules)."""
    stacked: dict[str, dict[int, Tensors]] = {}
    plain: dict[str, Tensors] = {}
    for module, tensors in sides.items():
        path, depth = module, 0
        while path.endswith(_INNER):
            path, depth = path.removesuffix(_INNER), depth + 1
        if path in stacks and tensors["kind"] == "linear":
            stacked.setdefault(path, {})[depth] = tensors
        else:
            plain[module] = tensors
    return stacked, plain


def _one_dtype(parts: list[AdapterPart]) -> tuple[AdapterPart, ...]:
    """The parts in the order of their columns; their `a` in the one dtype that holds them all."""
    parts = sorted(parts, key=lambda part: part.first)
    if len({part.a.dtype for part in parts}) > 1:
        parts = [replace(part, a=Dense(part.a.dequantize(), "float32")) for part in parts]
    return tuple(parts)


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
