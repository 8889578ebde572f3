"""What a quantized checkpoint's format is: which tensors hold a matrix, and how they become a layout."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import FLOATS, Dense, Layout

F32 = NDArray[np.float32]
_HINT = "Does the quantization config belong to this checkpoint, and is its download complete?"
Size = int | range | None
"""A dimension that a tensor must have: this size, one of these, or any."""


class Store(Protocol):
    """The part of a checkpoint that formats need."""

    def get(self, name: str) -> Dense: ...

    def file_of(self, name: str) -> Path: ...


class Format(Protocol):
    """The format of one checkpoint, as its config describes it."""

    method: str
    """The config's quant_method."""
    unused: tuple[str, ...]
    """Regular expressions of tensors that belong to the format and that nobody reads."""

    @property
    def growth(self) -> float:
        """Bytes in memory over bytes in the file: more than 1 where codes stand wider."""

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        """The last words of the tensors that hold the weight of the module `stem`; none when it is plain.

        What the tensors' names say counts, not the config's lists of modules: a module that a list forgets
        is read all the same.
        """

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        """The module's weight [rows, cols], its codes as they are stored. CheckpointError names a tensor
        that is not as it must be.
        """


def tensor_name(stem: str, suffix: str) -> str:
    """The tensor of module `stem` that ends with `suffix`: behind a dot, but for one that begins with `_` or
    with a dot of its own; the module itself for none.
    """
    return f"{stem}{suffix}" if not suffix or suffix.startswith(("_", ".")) else f"{stem}.{suffix}"


class Tensors:
    """The tensors of one quantized module; what is asked of them is checked first.

    `stack`: (number of this expert, experts) where a module holds all of a layer. What has a dimension for
    them, [experts, a, b, ...], is this expert's already; what has not is all of theirs.
    """

    def __init__(
        self, stem: str, suffixes: tuple[str, ...], store: Store, stack: tuple[int, int] = (0, 1)
    ) -> None:
        self.stem = stem
        self.suffixes = suffixes
        self.stack = stack
        self._store = store

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.suffixes

    def name(self, suffix: str) -> str:
        """The tensor's whole name."""
        return tensor_name(self.stem, suffix)

    def error(self, suffix: str, what: str, hint: str = _HINT) -> CheckpointError:
        """An error that begins with the tensor and its file."""
        name = self.name(suffix)
        return CheckpointError(f"Tensor {name} in {self._store.file_of(name)} {what}.", hint=hint)

    def stored(self, suffix: str) -> Dense:
        """The tensor as it is stored, not checked."""
        return self._store.get(self.name(suffix))

    def get(self, suffix: str, dtypes: tuple[str, ...], shape: tuple[Size, ...]) -> Dense:
        """The tensor, whose dtype is one of `dtypes` and whose shape is `shape`."""
        tensor = self.stored(suffix)
        if tensor.dtype not in dtypes:
            raise self.error(suffix, f"has the dtype {tensor.dtype}, expected {' or '.join(dtypes)}")
        if len(tensor.shape) != len(shape) or not all(map(_fits, tensor.shape, shape)):
            raise self.error(suffix, f"has shape {list(tensor.shape)}, expected {_expected(shape)}")
        return tensor

    def ints(self, suffix: str, dtype: str, shape: tuple[Size, ...]) -> NDArray[Any]:
        """An integer tensor."""
        return self.get(suffix, (dtype,), shape).data

    def floats(self, suffix: str, shape: tuple[Size, ...]) -> F32:
        """A tensor of numbers (float32, float16, bfloat16) as float32, none of them infinite or NaN."""
        return self.finite(suffix, self.get(suffix, tuple(FLOATS), shape).dequantize())

    def finite(self, suffix: str, values: F32) -> F32:
        """`values`, which the tensor says, all of them finite."""
        if not np.isfinite(values).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise self.error(suffix, f"holds {values[at]} at {list(at)}, expected a finite number")
        return values


def _fits(found: int, size: Size) -> bool:
    return size is None or (found in size if isinstance(size, range) else found == size)


def _expected(shape: tuple[Size, ...]) -> str:
    words = [
        "any"
        if size is None
        else f"{size.start} to {size.stop - 1}"
        if isinstance(size, range)
        else str(size)
        for size in shape
    ]
    return f"[{', '.join(words)}]"


def integer(config: dict[str, Any], key: str, choices: Container[int], said: str, default: Any = None) -> int:
    """A whole number of a quantization config; UnsupportedModel says `said`, what there is, for another."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value not in choices:
        raise UnsupportedModel(f"The quantization config has {key} {value!r:.60}, expected {said}.")
    return value


def group_size(config: dict[str, Any], key: str = "group_size", default: Any = None) -> int | None:
    """How many columns share a scale; None (-1 in the config) for all."""
    value = config.get(key, default)
    if value is None or value == -1:
        return None
    return integer(config, key, range(1, 1 << 24), "-1 or a positive number", default)


def flag(config: dict[str, Any], key: str, default: bool) -> bool:
    """A true or false of a quantization config; null is the default. UnsupportedModel for another value."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UnsupportedModel(f"The quantization config has {key} {value!r:.60}, expected true or false.")
    return value
