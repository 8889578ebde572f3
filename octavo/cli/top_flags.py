"""The flags of ``octavo top``."""

from __future__ import annotations

from octavo.config.flag_table import Flag

TOP: tuple[Flag, ...] = (
    Flag("url", "str", "cli.url", "The server (http://localhost:8000); the same as the first word."),
    Flag("api-key", "str", "cli.api_key", "Key for the server; default: OPENAI_API_KEY."),
    Flag("interval", "float", "cli.interval", "Seconds between two looks (2).", least=0.05, most=3600),
    Flag("once", "bool", "cli.once", "Print one frame, over one such interval, and leave."),
)
"""Flags with target ``cli.NAME``."""
