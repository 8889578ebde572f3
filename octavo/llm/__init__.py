"""The offline classes: `LLM` (a call returns when the answers are there) and `AsyncLLM` (they stream)."""

from __future__ import annotations

from octavo.llm.args import AsyncEngineArgs, EngineArgs
from octavo.llm.inputs import TextPrompt, TokensPrompt
from octavo.llm.offline import LLM
from octavo.llm.online import AsyncLLM

__all__ = ["LLM", "AsyncEngineArgs", "AsyncLLM", "EngineArgs", "TextPrompt", "TokensPrompt"]
