"""GPTQ (Frantar et al. 2022): columns are rounded one after another, and what each loses is made good in
those that follow, as far as the inputs that the matrix sees in a text allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts import Dense
from octavo.ops.rounding import best_scale

F32 = NDArray[np.float32]

_BLOCK = 128
"""Columns after which the others hear of the losses, in one product."""
_DAMP = 0.01
"""Of the mean of the Hessian's diagonal, added to it."""
_ROWS = 4096
"""Inputs whose squares are summed at a time."""
_LOW, _HIGH, _TRIES, _STEP = -8, 7, 19, 0.1


@dataclass(frozen=True)
class Inputs:
    """What is known of a matrix's inputs: `order` in which columns are rounded, `upper` the Cholesky factor U
    of the inverse Hessian (inverse = U^T U) in that order, and columns that never see anything but 0.
    """

    order: NDArray[np.intp]
    upper: F32
    dead: NDArray[np.bool_]

    @property
    def sorted(self) -> bool:
        """Whether columns are rounded in another order than they stand in."""
        return not np.array_equal(self.order, np.arange(len(self.order)))


def inputs_of(x: F32, act_order: bool) -> Inputs:
    """Of inputs [n, cols]. With `act_order` the columns with the largest inputs are rounded first."""
    cols = x.shape[1]
    hessian = np.zeros((cols, cols))
    for start in range(0, len(x), _ROWS):
        some = x[start : start + _ROWS]
        hessian += some.T @ some
    sizes = hessian.diagonal().copy()
    dead = sizes == 0
    order = np.argsort(-sizes, kind="stable") if act_order else np.arange(cols)
    hessian = hessian[order][:, order]
    at = np.arange(cols)
    hessian[at, at] += np.where(dead[order], 1.0, 0.0)
    mean, damp = float(hessian.diagonal().mean()), _DAMP
    while True:
        hessian[at, at] += damp * mean
        try:
            upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
        except np.linalg.LinAlgError:
            # Too few inputs for so many columns.
            damp *= 10
            if damp > 1e6:
                raise
            continue
        return Inputs(order, np.ascontiguousarray(upper, np.float32), dead)


def round_columns(values: F32, inputs: Inputs, group: int, dtype: str) -> tuple[NDArray[np.int8], Dense]:
    """(codes -8 .. 7 [rows, cols], scales [rows, groups] in `dtype`) of a matrix [rows, cols].

    A group's scale is that of least squared error when its first column is rounded; where columns are rounded
    in another order than they stand in, all scales are found beforehand.
    """
    rows, cols = values.shape
    left = np.ascontiguousarray(np.where(inputs.dead, np.float32(0), values).T)[inputs.order]
    scale = np.zeros((-(-cols // group), rows), np.float32)
    if inputs.sorted:
        for g in range(len(scale)):
            scale[g] = _scale(values[:, g * group : (g + 1) * group], dtype)
    codes = np.empty((cols, rows), np.int8)
    for begin in range(0, cols, _BLOCK):
        end = min(begin + _BLOCK, cols)
        lost = np.empty((end - begin, rows), np.float32)
        for at in range(begin, end):
            column = inputs.order[at]
            g = column // group
            if not inputs.sorted and column % group == 0:
                scale[g] = _scale(left[at : at + group].T, dtype)
            safe = np.where(scale[g] != 0, scale[g], np.float32(1))
            code = np.where(scale[g] != 0, np.clip(np.rint(left[at] / safe), _LOW, _HIGH), np.float32(0))
            codes[column] = code
            lost[at - begin] = (left[at] - code * scale[g]) / inputs.upper[at, at]
            left[at + 1 : end] -= inputs.upper[at, at + 1 : end, None] * lost[at - begin]
        left[end:] -= inputs.upper[begin:end, end:].T @ lost
    return np.ascontiguousarray(codes.T), Dense.of(np.ascontiguousarray(scale.T), dtype)


def _scale(values: F32, dtype: str) -> F32:
    """The scale of each row of a group, as it will be stored."""
    found = best_scale(np.ascontiguousarray(values)[:, None], _LOW, _HIGH, _TRIES, _STEP)[:, 0]
    return Dense.of(np.ascontiguousarray(found, np.float32), dtype).dequantize()
