"""The flags of ``octavo run-batch`` beside the engine's and the server's own."""

from __future__ import annotations

from octavo.config.flag_table import Flag

BATCH: tuple[Flag, ...] = (
    Flag("input-file", "str", "cli.input_file", "Requests, one JSON object a line.", aliases=("-i",)),
    Flag("output-file", "str", "cli.output_file", "Where the answers go, in that order.", aliases=("-o",)),
    Flag("output-tmp-dir", "str", "cli.tmp", "Accepted: answers are written as they come."),
    Flag("enable-metrics", "bool", "cli.metrics", "Accepted: a batch has no /metrics."),
    Flag("url", "str", "cli.url", "Accepted: a batch has no /metrics."),
    Flag("concurrency", "int", "cli.concurrency", "Lines at work together (256).", least=1, most=65536),
)
"""Flags with target ``cli.NAME``."""
