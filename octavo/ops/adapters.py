"""Low-rank adapters beside matrices (Hu et al. 2022): y += scale * B (A x), for the rows that ask for it.

The base matrix is untouched, whatever its format. A and B are dense matrices: under dtype bfloat16 each sees
its input rounded to it, as every matrix does; sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Batch, Runnable
from octavo.ops.layouts import Dense


@dataclass(frozen=True, eq=False)
class AdapterPart:
    """What an adapter adds to some of a matrix's outputs: query, key and value have one each."""

    first: int
    """The first output column; there are as many as `b` has rows."""
    a: Dense
    """[rank, in]"""
    b: Dense
    """[out, rank]"""
    scale: float
    logits: bool = False
    """The matrix makes logits: its rows are the step's logit rows, not its tokens."""
    table: bool = False
    """The matrix is read by rows (an embedding): `a` is [ids, rank], and its rows stand for A x."""


AdapterParts = Mapping[str, tuple[AdapterPart, ...]]
"""One adapter: the name of a matrix's Param to its parts; the `a` of one product have one dtype."""


class Adaptable(Runnable, Protocol):
    """A bound model that takes adapters: contract.Runnable, and numbered places for them."""

    def set_adapter(self, slot: int, parts: AdapterParts | None) -> None:
        """Put an adapter in place `slot`, for the sequences whose Batch.adapters say so; None: empty it.

        To be called between steps.
        """


def adapter_rows(batch: Batch, logits: bool) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(slot, its rows in ascending order) for every adapter of a step, among its tokens or logit rows."""
    if batch.adapters is None:
        return
    slots = np.repeat(batch.adapters, np.diff(batch.seq_starts))
    slots = slots[batch.logit_rows] if logits else slots
    for slot in np.unique(slots[slots >= 0]):
        yield int(slot), np.flatnonzero(slots == slot)


def add_adapters(
    y: Any,
    x: Any,
    name: str,
    batch: Batch,
    adapters: Mapping[int, AdapterParts],
    product: Callable[[Any, Dense], Any],
    rows_of: Callable[[Any, Dense], Any] | None = None,
) -> Any:
    """y [n, out] with what the step's adapters add to the matrix `name` for its input x [n, in].

    `product(x, matrix)` is the backend's x @ matrix.T, its input rounded as dense matrices see it. For an
    embedding x are ids [n], and `rows_of(ids, table)` float32 rows. `y` is changed where an adapter adds
    something.
    """
    for logits in (False, True):
        for slot, rows in adapter_rows(batch, logits):
            for part in adapters.get(slot, {}).get(name, ()):
                if part.logits == logits and part.table == (rows_of is not None):
                    low = (rows_of or product)(x[rows], part.a) * np.float32(part.scale)
                    y[rows, part.first : part.first + part.b.shape[0]] += product(low, part.b)
    return y
