"""The flags of ``octavo convert`` and ``octavo quantize``."""

from __future__ import annotations

from octavo.config.flag_table import Flag

CONVERT: tuple[Flag, ...] = (
    Flag(
        "to",
        "str",
        "cli.to",
        "The format to write; default: safetensors for a GGUF file, else gguf.",
        choices=("gguf", "safetensors"),
    ),
    Flag(
        "outtype",
        "str",
        "cli.outtype",
        "How weights are stored: auto (as they are), f32, f16, bf16; for GGUF also q8_0, q4_0, "
        "q4_1, q5_0, q5_1, iq4_nl, iq4_xs, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, "
        "q6_k or mxfp4_moe.",
    ),
    Flag("dummy", "str", "cli.dummy", "Random weights of a published model's shape, instead of SRC."),
)
"""Flags with target ``cli.NAME``."""

QUANTIZE: tuple[Flag, ...] = (
    Flag(
        "scheme",
        "str",
        "cli.scheme",
        "int4 (w4a16), int8 (w8a16), w8a8 or gptq, written as compressed-tensors; or an --outtype of octavo "
        "convert such as q4_k_m, written as GGUF.",
    ),
    Flag(
        "format",
        "str",
        "cli.format",
        "How 4 and 8 bits are written: compressed-tensors, or gptq as AutoGPTQ and GPTQModel do.",
        choices=("compressed-tensors", "gptq"),
    ),
    Flag("text", "str", "cli.text", "A file of plain text that gptq chooses its codes by."),
    Flag("act-order", "bool", "cli.act_order", "gptq: columns with the largest inputs are rounded first."),
    Flag(
        "group-size", "int", "cli.group_size", "Columns that share a scale (128); -1: whole rows.", least=-1
    ),
)
"""Of ``octavo quantize``."""
