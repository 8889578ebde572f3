"""The offline classes: `LLM` (a call returns when the answers are there) and `AsyncLLM` (they stream)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.llm.inputs import TextPrompt, TokensPrompt
from octavo.llm.offline import LLM
from octavo.llm.online import AsyncLLM

if TYPE_CHECKING:
    from octavo.llm.engine_args import AsyncEngineArgs, EngineArgs

__all__ = ["LLM", "AsyncEngineArgs", "AsyncLLM", "EngineArgs", "TextPrompt", "TokensPrompt"]


def __getattr__(name: str) -> Any:
    if name in ("EngineArgs", "AsyncEngineArgs"):
        from octavo.llm import engine_args

        return getattr(engine_args, name)
    raise AttributeError(f"module 'octavo.llm' has no attribute {name!r}")
