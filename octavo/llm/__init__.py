"""The offline classes: `LLM` (a call returns when the answers are there) and `AsyncLLM` (they stream)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.aliases import later
from octavo.llm.inputs import PromptType, TextPrompt, TokensPrompt
from octavo.llm.offline import LLM
from octavo.llm.online import AsyncLLM

if TYPE_CHECKING:
    from octavo.llm.engine import LLMEngine
    from octavo.llm.engine_args import AsyncEngineArgs, EngineArgs
    from octavo.llm.registry import ModelRegistry

AsyncLLMEngine = AsyncLLM

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "EngineArgs",
    "LLMEngine",
    "ModelRegistry",
    "PromptType",
    "TextPrompt",
    "TokensPrompt",
]

__getattr__ = later(
    __name__,
    {
        "EngineArgs": "octavo.llm.engine_args",
        "AsyncEngineArgs": "octavo.llm.engine_args",
        "LLMEngine": "octavo.llm.engine",
        "ModelRegistry": "octavo.llm.registry",
    },
)
