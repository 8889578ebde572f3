"""PEFT's adapter files: from a folder to the parts that a model's matrices add.

A tensor is named `base_model.model.PATH.lora_A.weight` ([rank, in]) or `lora_B` ([out, rank]), PATH being the
module's in transformers. A module that Octavo keeps in one matrix with others (query, key, value) becomes a
part of that matrix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from octavo.config import machine
from octavo.errors import AdapterError, CheckpointError, NotFound, OutOfMemory
from octavo.layers.decoder import Decoder
from octavo.layers.linear import Linear
from octavo.log import logger
from octavo.lora import config as peft
from octavo.lora.config import AdapterConfig
from octavo.models import names
from octavo.ops.adapters import AdapterPart, AdapterParts
from octavo.ops.contract import Param
from octavo.ops.layouts import FLOATS, Dense
from octavo.types.lora import Adapter
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.hub import resolve_model

log = logger(__name__)

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_DOWNLOAD = (peft.FILE, *_WEIGHTS)
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_EMBEDDING = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?")
_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer)?\.weight")
"""PEFT saves the base's own embedding and output matrix beside adapters of these, changed or not."""
_LISTED = 5


@dataclass(frozen=True)
class _Place:
    """Where a module of the checkpoint stands in the model: rows of a matrix."""

    param: Param
    first: int
    rows: int
    logits: bool = False
    table: bool = False


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

    def __init__(self, model: Decoder, dtype: str, max_rank: int, *, forced: bool = False) -> None:
        """`forced`: numbers stored narrower become `dtype` as well."""
        self._places = _places(model)
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
        weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
        if weights is None:
            raise NotFound(f"No adapter found for {path}: it has none of {', '.join(_WEIGHTS)}.")
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
        sides = _modules(checkpoint, file, self._is_copy)
        chosen = {module: tensors for module, tensors in sides.items() if said.selects(module)}
        if len(chosen) < len(sides):
            log.warning(
                "%s: %d of its %d modules are not in target_modules and are left out, as PEFT does.",
                file,
                len(sides) - len(chosen),
                len(sides),
            )
        self._refuse_unknown(said, file, list(chosen))
        found: dict[str, list[AdapterPart]] = {}
        for module, tensors in chosen.items():
            place = self._places[module]
            if place.table != (tensors["kind"] == "embedding"):
                raise AdapterError(
                    f"{file} has tensors of {module} that are those of another kind of module."
                )
            part = self._part(said, module, tensors, checkpoint, place)
            found.setdefault(place.param.name, []).append(part)
        if not found:
            raise AdapterError(f"{file} holds no LoRA weights for this model.")
        rank = max(part.b.shape[1] for own in found.values() for part in own)
        return {name: _one_dtype(own) for name, own in found.items()}, rank

    def _is_copy(self, module: str, shape: tuple[int, ...]) -> bool:
        """Whether a whole matrix in an adapter's file is one that the base has, too."""
        place = self._places.get(module)
        return place is not None and (place.table or place.logits) and shape == place.param.shape

    def _refuse_unknown(self, said: AdapterConfig, file: Path, modules: list[str]) -> None:
        unknown = sorted(module for module in modules if module not in self._places)
        if not unknown:
            return
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        made_for = f" The adapter was made for {said.base}." if said.base else ""
        raise AdapterError(
            f"{file} adapts {len(unknown)} modules (of {len(modules)}) that are no plain matrices of this "
            f"model: {', '.join(unknown[:_LISTED])}{more}.{made_for}",
            hint="Does it belong to this base? Experts are not adapted.",
        )

    def _part(
        self,
        said: AdapterConfig,
        module: str,
        tensors: Mapping[str, str],
        checkpoint: Checkpoint,
        place: _Place,
    ) -> AdapterPart:
        for side in "AB":
            if side not in tensors:
                other = tensors["B" if side == "A" else "A"]
                raise AdapterError(f"{checkpoint.file_of(other)} has {other}, but no lora_{side} beside it.")
        rank = said.rank_of(module)
        rows, columns = place.param.shape
        inner, out = (rows, columns) if place.table else (columns, place.rows)
        a = self._tensor(checkpoint, tensors["A"], (rank, inner), module)
        b = self._tensor(checkpoint, tensors["B"], (out, rank), module)
        if place.table:
            a = Dense(np.ascontiguousarray(a.data.T), a.dtype)
        return AdapterPart(place.first, a, b, said.scale_of(module), place.logits, place.table)

    def _tensor(self, checkpoint: Checkpoint, name: str, shape: tuple[int, int], module: str) -> Dense:
        """One tensor, checked, in memory of its own."""
        stored, file = checkpoint.get(name), checkpoint.file_of(name)
        if stored.shape != shape:
            raise AdapterError(
                f"Tensor {name} in {file} has shape {list(stored.shape)}; this model's {module} at the "
                f"adapter's rank takes {list(shape)}.",
                hint="Was the adapter made for another base, or its rank changed?",
            )
        if stored.dtype not in FLOATS and stored.dtype != "float64":
            raise AdapterError(f"Tensor {name} in {file} has the dtype {stored.dtype}; expected a float.")
        wide = stored.data.astype(np.float32) if stored.dtype == "float64" else stored.dequantize()
        narrow = self._forced or stored.dtype in ("float32", "float64")
        with np.errstate(over="ignore"):
            kept = Dense.of(wide, self._dtype) if narrow else Dense(stored.data.copy(), stored.dtype)
        bad = int(np.count_nonzero(~np.isfinite(kept.dequantize())))
        checkpoint.release(name)
        if bad:
            raise AdapterError(
                f"Tensor {name} in {file} holds {bad} of {wide.size} values that are no finite numbers in "
                f"{kept.dtype}.",
                hint="The training has diverged, or the file is damaged.",
            )
        return kept


def _modules(
    checkpoint: Checkpoint, file: Path, is_copy: Callable[[str, tuple[int, ...]], bool]
) -> dict[str, dict[str, str]]:
    """Module path to {"A": tensor, "B": tensor, "kind": linear or embedding}, copies of the base left out.

    Raises AdapterError for a tensor of another kind.
    """
    found: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for name in checkpoint.names():
        linear = _TENSOR.fullmatch(name) if len(name) < 1000 else None
        match = linear or (_EMBEDDING.fullmatch(name) if len(name) < 1000 else None)
        if match is None:
            copy = _COPY.fullmatch(name) if len(name) < 1000 else None
            if copy is None or not is_copy(copy["module"], checkpoint.get(name).shape):
                strange.append(name[:200])
            continue
        sides = found.setdefault(match["module"], {"kind": "linear" if linear else "embedding"})
        if match["side"] in sides:
            raise AdapterError(f"{file} holds more than one adapter: {sides[match['side']]} and {name}.")
        sides[match["side"]] = name
    if strange:
        more = f" and {len(strange) - _LISTED} more" if len(strange) > _LISTED else ""
        raise AdapterError(
            f"{file} holds {len(strange)} tensors that are no lora_A or lora_B of a linear module: "
            f"{', '.join(strange[:_LISTED])}{more}.",
            hint="DoRA's magnitudes, biases and whole modules are not applied.",
        )
    return found


def _places(model: Decoder) -> dict[str, _Place]:
    """Every path that a checkpoint of the family may give a linear module."""
    found: dict[str, _Place] = {}
    for _, layer in model.walk():
        if isinstance(layer, Linear) and layer is not model.head:
            found |= _places_of(model, layer.weight, logits=False)
    if model.head is None:
        return found
    head = names.names_of(model).table["head"]
    for module, place in _places_of(model, model.head.weight, logits=True).items():
        if module.endswith(head):
            found[module] = place
    for module in _places_of(model, model.embed.weight, logits=False):
        if not module.endswith(head):
            found[module] = _Place(model.embed.weight, 0, model.embed.weight.shape[0], table=True)
    return found


def _places_of(model: Decoder, param: Param, *, logits: bool) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    source, first = names.sources(model, param), 0
    for spellings, rows in zip(source.names, source.rows, strict=True):
        for spelled in spellings:
            found[spelled.removesuffix(".weight")] = _Place(param, first, rows, logits)
        first += rows
    return found


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
