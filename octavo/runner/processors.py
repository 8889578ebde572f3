"""Logits processors: functions of the caller's own that change one sequence's logits before it is sampled.

They belong to programs that make their own SamplingParams; no request over HTTP can bring one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Processor = Callable[..., Any]
"""fn(output ids, logits) or fn(prompt ids, output ids, logits) -> logits, [vocab]."""


class Processors:
    """The processors of the rows that have some, and what those rows have drawn."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[list[_Named], list[int], list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def add(
        self, row: int, functions: Sequence[Processor], prompt: Sequence[int], output: Sequence[int]
    ) -> None:
        """Begin (or resume) a row."""
        self._rows[row] = [_Named(one) for one in functions], list(prompt), list(output)

    def remove(self, row: int) -> None:
        """Forget a row; an unknown one is fine."""
        self._rows.pop(row, None)

    def push(self, row: int, token: int) -> None:
        """Count a drawn token of a row that has processors."""
        self._rows[row][2].append(token)

    def apply(self, logits: Logits, rows: Sequence[int]) -> tuple[list[tuple[int, Logits]], dict[int, str]]:
        """Change the rows of `logits` [n, vocab] in place: ((place, what stood there) ..., errors by row)."""
        before: list[tuple[int, Logits]] = []
        errors: dict[int, str] = {}
        for i, row in enumerate(rows):
            if row not in self._rows:
                continue
            functions, prompt, output = self._rows[row]
            raw = logits[i].copy()
            before.append((i, raw))
            try:
                for one in functions:
                    logits[i] = one(prompt, output, logits[i].copy())
            except Exception as error:  # a caller's function: whatever it raises ends its own sequence
                logits[i] = raw
                errors[row] = f"{one.name} failed: {type(error).__name__}: {error!s:.300}"
        return before, errors


class _Named:
    """One processor, called in the form that it takes."""

    def __init__(self, function: Processor) -> None:
        self._function = function
        name = getattr(function, "__name__", type(function).__name__)
        self.name = f"The logits processor {name}"
        self._takes_prompt = _parameters(function) >= 3
        self._torch = _torch_of(function)

    def __call__(self, prompt: list[int], output: list[int], logits: Logits) -> Logits:
        given = logits if self._torch is None else self._torch.from_numpy(logits)
        made = self._function(prompt, output, given) if self._takes_prompt else self._function(output, given)
        if made is None:
            raise TypeError("it returned None instead of logits")
        found = np.asarray(made, np.float32)
        if found.shape != logits.shape:
            raise ValueError(f"it returned logits of the shape {list(found.shape)}, not {list(logits.shape)}")
        return found


def _parameters(function: Processor) -> int:
    try:
        return len(inspect.signature(function).parameters)
    except ValueError:  # of a function that is not written in Python
        return 2


def _torch_of(function: Processor) -> Any:
    """PyTorch where the processor's own module has imported it: it expects tensors then."""
    while isinstance(function, functools.partial):
        function = function.func
    code = function if hasattr(function, "__globals__") else type(function).__call__
    return getattr(code, "__globals__", {}).get("torch")
