"""The flags of ``octavo chat`` and ``octavo complete`` beside the engine's own."""

from __future__ import annotations

from octavo.config.flag_table import Flag

DEFAULT_URL = "http://localhost:8000/v1"

TALK: tuple[Flag, ...] = (
    Flag("url", "str", "cli.url", "A running server; default: one on port 8000 when no model is named."),
    Flag("model-name", "str", "cli.model_name", "The model to ask the server for; default: its first."),
    Flag("api-key", "str", "cli.api_key", "Key for the server; default: OPENAI_API_KEY."),
    Flag("system-prompt", "str", "cli.system_prompt", "Instructions before the conversation."),
    Flag("quick", "str", "cli.quick", "One question, one answer, then leave.", aliases=("-q",)),
    Flag("max-tokens", "int", "cli.max_tokens", "Longest answer, in tokens (complete: 256).", least=1),
    Flag("temperature", "float", "cli.temperature", "0 is greedy; default: the model's.", least=0, most=2),
    Flag("top-p", "float", "cli.top_p", "Share of probability to draw from.", least=0, most=1),
    Flag("top-k", "int", "cli.top_k", "Number of candidates to draw from.", least=-1),
)
"""Flags with target ``cli.NAME``."""
