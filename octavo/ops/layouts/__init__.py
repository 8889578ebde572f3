"""Weight layouts: what kernels know, never what a checkpoint calls it.

Every layout has `shape`, `nbytes`, `dequantize()`, `take(rows)` and `slice(axis, start, stop)`. Codes are
never rounded again: a format decodes into one of these as it is (docs/design.md).
"""

from octavo.ops.layouts.dense import (
    F32,
    FLOATS,
    Dense,
    bf16_to_f32,
    f32_to_bf16,
    pack4,
    smallest_float,
    unpack4,
)
from octavo.ops.layouts.experts import Experts
from octavo.ops.layouts.groups import (
    BLOCK,
    Grouped,
    Kind,
    Scale,
    SubScales,
    aligned,
    byte_run,
    input_block,
    input_order,
    scale_values,
)
from octavo.ops.layouts.integers import Activation, Int4Group, Int8, IntBits
from octavo.ops.layouts.online import Online
from octavo.ops.layouts.stack import Stack
from octavo.ops.layouts.tables import Fp8, Lut4, fp8_table

Layout = Dense | Int8 | Int4Group | IntBits | Lut4 | Fp8 | Online | Stack | Experts

__all__ = [
    "BLOCK",
    "F32",
    "FLOATS",
    "Activation",
    "Dense",
    "Experts",
    "Fp8",
    "Grouped",
    "Int4Group",
    "Int8",
    "IntBits",
    "Kind",
    "Layout",
    "Lut4",
    "Online",
    "Scale",
    "Stack",
    "SubScales",
    "aligned",
    "bf16_to_f32",
    "f32_to_bf16",
    "fp8_table",
    "byte_run",
    "input_block",
    "input_order",
    "pack4",
    "scale_values",
    "smallest_float",
    "unpack4",
]
