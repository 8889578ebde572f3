"""The flags of ``octavo inspect`` beside the engine's own."""

from __future__ import annotations

from octavo.config.flag_table import Flag

INSPECT: tuple[Flag, ...] = (
    Flag("base", "str", "cli.base", "Of a LoRA adapter: the model that it shall fit."),
    Flag("json", "bool", "cli.json", "The whole report as JSON."),
)
"""Flags with target ``cli.NAME``."""
