"""The numbers of an adapter's modules, checked: from tensors to the parts that a model's matrices add."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from octavo.errors import AdapterError
from octavo.lora.config import AdapterConfig
from octavo.lora.places import Place, Stack
from octavo.ops.adapters import AdapterPart
from octavo.ops.layouts import FLOATS, Dense
from octavo.weights.checkpoint import Checkpoint

F32 = NDArray[np.float32]
Tensors = dict[str, str]
"""One module's: the names of its `A`, `B`, `magnitude`, `bias` (of B) and `own bias` (instead of the base's);
`kind` is linear or embedding.
"""
BaseRows = Callable[[str, int, int], F32]

_SLICE = 1 << 20
"""Numbers of the base that are looked at at once."""


class Reader:
    """Reads one adapter's file."""

    def __init__(
        self, checkpoint: Checkpoint, said: AdapterConfig, dtype: str, forced: bool, rows: BaseRows
    ) -> None:
        """`dtype`, `forced`, `rows`: see lora.load.AdapterLoader."""
        self._checkpoint = checkpoint
        self._said = said
        self._dtype = dtype
        self._forced = forced
        self._rows = rows

    def part(self, module: str, tensors: Tensors, place: Place) -> AdapterPart:
        """What a module's adapter adds to the rows of its matrix. Raises AdapterError."""
        if tensors.keys() == {"kind", "own bias"}:
            return self._bias_alone(module, tensors["own bias"], place)
        self._both(module, tensors)
        rank = self._said.rank_of(module)
        inner, out = (place.rows, place.columns) if place.table else (place.columns, place.rows)
        a = self._matrix(tensors["A"], (rank, inner), module)
        b = self._matrix(tensors["B"], (out, rank), module)
        if place.table:
            a = Dense(np.ascontiguousarray(a.data.T), a.dtype)
        scale = self._said.scale_of(module)
        factor, shift = self._behind(module, tensors, place, (a, b, scale))
        return AdapterPart(place.first, a, b, scale, place.logits, place.table, factor, shift)

    def stack(
        self, path: str, layers: Mapping[int, Tensors], stack: Stack
    ) -> Iterator[tuple[str, AdapterPart]]:
        """(an expert's matrix, its part) of a module of stacked experts, whose parameters PEFT wraps one
        around the other, the first innermost. Of A [experts * rank, in] the rows of an expert stand
        together; of B [out, rank * experts] each of its columns is `experts` from the next.
        """
        targets = [name for name in stack if self._said.selects_parameter(f"{path}.{name}")]
        if any(depth >= len(targets) for depth in layers):
            raise AdapterError(
                f"{self._checkpoint.file_of(layers[max(layers)]['A'])} has {max(layers) + 1} adapters of "
                f"{path}, of which target_parameters names {len(targets)} ({', '.join(targets) or 'none'})."
            )
        for depth, tensors in layers.items():
            name = targets[len(targets) - 1 - depth]
            key = f"{path}.{name}"
            self._both(key, tensors)
            rank, scale = self._said.rank_of(key), self._said.scale_of(key)
            a, b = self._stacked(key, tensors, stack, name, rank)
            for own in stack[name]:
                for e in range(own.param.shape[0]):
                    yield (
                        f"{own.param.name}#{e}",
                        AdapterPart(
                            0,
                            Dense(np.ascontiguousarray(a.data.reshape(-1, rank, a.shape[1])[e]), a.dtype),
                            Dense(np.ascontiguousarray(b.data[own.rows, e :: own.param.shape[0]]), b.dtype),
                            scale,
                        ),
                    )

    def _stacked(self, key: str, tensors: Tensors, stack: Stack, name: str, rank: int) -> tuple[Dense, Dense]:
        """A [experts * rank, in] and B [out, rank * experts] of all experts."""
        if extra := sorted(tensors.keys() - {"A", "B", "kind"}):
            raise AdapterError(f"The tensor {tensors[extra[0]]} belongs to experts, which have none in PEFT.")
        experts, rows, inner = stack[name][0].param.shape
        out = rows * len(stack[name])
        if self._checkpoint.get(tensors["A"]).shape == (experts * rank, out) != (experts * rank, inner):
            # Before PEFT 0.18.1 or so the two change places: what it calls A reads the outputs.
            a = self._matrix(tensors["B"], (inner, rank * experts), key)
            b = self._matrix(tensors["A"], (experts * rank, out), key)
            turned = a.data.reshape(inner, rank, experts).transpose(2, 1, 0).reshape(experts * rank, inner)
            back = b.data.reshape(experts, rank, out).transpose(2, 1, 0).reshape(out, rank * experts)
            return Dense(np.ascontiguousarray(turned), a.dtype), Dense(np.ascontiguousarray(back), b.dtype)
        a = self._matrix(tensors["A"], (experts * rank, inner), key)
        return a, self._matrix(tensors["B"], (out, rank * experts), key)

    def _both(self, module: str, tensors: Tensors) -> None:
        for side in "AB":
            if side not in tensors:
                other = next(name for key, name in tensors.items() if key != "kind")
                file = self._checkpoint.file_of(other)
                raise AdapterError(f"{file} has {other}, but no lora_{side} beside it.")

    def _behind(
        self, module: str, tensors: Tensors, place: Place, low: tuple[Dense, Dense, float]
    ) -> tuple[F32, F32] | tuple[None, None]:
        """What the sum is multiplied by, and what is added then: DoRA's magnitudes, lora_B's bias."""
        out = place.columns if place.table else place.rows
        flags = (("magnitude", "use_dora", self._said.dora), ("bias", "lora_bias", self._said.bias))
        for key, flag, said in flags:
            if (key in tensors) != said and not (key == "bias" and place.table):
                raise AdapterError(
                    f"adapter_config.json says {flag}: {str(said).lower()}, but {module} "
                    f"{'has' if key in tensors else 'lacks'} what that stands for ({key})."
                )
        if not tensors.keys() & {"magnitude", "bias", "own bias"}:
            return None, None
        factor, shift = np.ones(out, np.float32), np.zeros(out, np.float32)
        if "own bias" in tensors:
            shift += self._moved(module, tensors["own bias"], place)
        if "bias" in tensors:
            shift += np.float32(low[2]) * self._vector(tensors["bias"], out, module)
        if "magnitude" not in tensors:
            return factor, shift
        if place.expert_bias:
            raise AdapterError(f"{module} is an expert with a bias, which DoRA is not applied to.")
        magnitude = self._vector(tensors["magnitude"], out, module)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factor = np.asarray(magnitude / self._norms(place, *low), np.float32)
        if not np.isfinite(factor).all():
            raise AdapterError(
                f"{module} with its adapter has rows of zeros, which have no direction (DoRA)."
            )
        if place.bias:  # the magnitudes do not speak of it
            shift += (1 - factor) * self._rows(place.bias, place.first, place.first + out).reshape(-1)
        return factor, shift

    def _bias_alone(self, module: str, name: str, place: Place) -> AdapterPart:
        """Of a module whose matrix stays as it is."""
        a = Dense(np.zeros((1, place.columns), np.float32), "float32")
        b = Dense(np.zeros((place.rows, 1), np.float32), "float32")
        shift = self._moved(module, name, place)
        factor = np.ones(place.rows, np.float32)
        return AdapterPart(place.first, a, b, 1.0, place.logits, place.table, factor, shift)

    def _moved(self, module: str, name: str, place: Place) -> F32:
        """An adapter's own bias less the base's (PEFT's `bias` of `all` and `lora_only`)."""
        if place.table or place.expert_bias:
            raise AdapterError(f"{module} has the bias {name}, which is not applied to such a module.")
        bias = self._vector(name, place.rows, module)
        if place.bias is None:
            return bias
        return bias - self._rows(place.bias, place.first, place.first + place.rows).reshape(-1)

    def _norms(self, place: Place, a: Dense, b: Dense, scale: float) -> F32:
        """|W + scale B A| of each output, W as the model multiplies by it; a table's outputs are columns."""
        squares = np.zeros(place.columns if place.table else place.rows, np.float64)
        a32, b32 = a.dequantize(), b.dequantize() * np.float32(scale)
        step = max(1, _SLICE // place.columns)
        for start in range(0, place.rows, step):
            stop = min(start + step, place.rows)
            rows = self._rows(place.name, place.first + start, place.first + stop)
            if place.table:
                squares += np.square(rows + a32[start:stop] @ b32.T).sum(axis=0, dtype=np.float64)
            else:
                squares[start:stop] = np.square(rows + b32[start:stop] @ a32).sum(axis=1, dtype=np.float64)
        return np.asarray(np.sqrt(squares), np.float32)

    def _vector(self, name: str, size: int, module: str) -> F32:
        """One number for each output."""
        stored = self._checkpoint.get(name)
        whole = (
            stored.shape
            if len(stored.shape) == 1
            else (size,)
            if stored.shape in ((1, size), (size, 1))
            else ()
        )
        if whole != (size,):
            self._refuse_shape(name, stored.shape, (size,), module)
        return self._numbers(name).dequantize().reshape(-1)

    def _matrix(self, name: str, shape: tuple[int, int], module: str) -> Dense:
        """One tensor, checked, in memory of its own."""
        stored = self._checkpoint.get(name)
        if stored.shape != shape:
            self._refuse_shape(name, stored.shape, shape, module)
        return self._numbers(name)

    def _refuse_shape(
        self, name: str, shape: tuple[int, ...], expected: tuple[int, ...], module: str
    ) -> None:
        raise AdapterError(
            f"Tensor {name} in {self._checkpoint.file_of(name)} has shape {list(shape)}; this model's "
            f"{module} at the adapter's rank takes {list(expected)}.",
            hint="Was the adapter made for another base, or its rank changed?",
        )

    def _numbers(self, name: str) -> Dense:
        """A tensor in the dtype in which it is kept."""
        stored, file = self._checkpoint.get(name), self._checkpoint.file_of(name)
        if stored.dtype not in FLOATS and stored.dtype != "float64":
            raise AdapterError(f"Tensor {name} in {file} has the dtype {stored.dtype}; expected a float.")
        wide = stored.data.astype(np.float32) if stored.dtype == "float64" else stored.dequantize()
        narrow = self._forced or stored.dtype in ("float32", "float64")
        with np.errstate(over="ignore"):
            kept = Dense.of(wide, self._dtype) if narrow else Dense(stored.data.copy(), stored.dtype)
        bad = int(np.count_nonzero(~np.isfinite(kept.dequantize())))
        self._checkpoint.release(name)
        if bad:
            raise AdapterError(
                f"Tensor {name} in {file} holds {bad} of {wide.size} values that are no finite numbers in "
                f"{kept.dtype}.",
                hint="The training has diverged, or the file is damaged.",
            )
        return kept
