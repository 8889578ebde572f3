"""The flags of ``octavo convert``."""

from __future__ import annotations

from octavo.config.flag_table import Flag

CONVERT: tuple[Flag, ...] = (
    Flag("to", "str", "cli.to", "The format to write.", choices=("gguf",)),
    Flag(
        "outtype",
        "str",
        "cli.outtype",
        "How weights are stored: auto (as they are), f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl, "
        "q4_k_s, q4_k_m, q5_k_s, q5_k_m or q6_k.",
    ),
    Flag("dummy", "str", "cli.dummy", "Random weights of a published model's shape, instead of SRC."),
)
"""Flags with target ``cli.NAME``."""
