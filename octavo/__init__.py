"""Octavo: vLLM's whole job on the machine a person already has.

Names load on first use, so that ``import octavo`` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octavo.llm import (
        LLM,
        AsyncEngineArgs,
        AsyncLLM,
        AsyncLLMEngine,
        EngineArgs,
        LLMEngine,
        ModelRegistry,
        PromptType,
        TextPrompt,
        TokensPrompt,
    )
    from octavo.types.beam import BeamSearchParams
    from octavo.types.lora import LoRARequest
    from octavo.types.outputs import CompletionOutput, RequestOutput
    from octavo.types.pooling import (
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingParams,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from octavo.types.sampling import RequestOutputKind, SamplingParams
    from octavo.types.structured import GuidedDecodingParams, StructuredOutputsParams

_HOMES = {
    "octavo.llm": (
        "LLM AsyncEngineArgs AsyncLLM AsyncLLMEngine EngineArgs LLMEngine ModelRegistry PromptType "
        "TextPrompt TokensPrompt"
    ),
    "octavo.types.beam": "BeamSearchParams",
    "octavo.types.lora": "LoRARequest",
    "octavo.types.outputs": "CompletionOutput RequestOutput",
    "octavo.types.pooling": (
        "ClassificationOutput ClassificationRequestOutput EmbeddingOutput EmbeddingRequestOutput "
        "PoolingOutput PoolingParams PoolingRequestOutput ScoringOutput ScoringRequestOutput"
    ),
    "octavo.types.sampling": "RequestOutputKind SamplingParams",
    "octavo.types.structured": "GuidedDecodingParams StructuredOutputsParams",
}
NAMES = {name: home for home, names in _HOMES.items() for name in names.split()}
"""Every name of this module, and where it comes from."""

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "BeamSearchParams",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "GuidedDecodingParams",
    "LLMEngine",
    "LoRARequest",
    "ModelRegistry",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "_native":
        return _native_code()
    from octavo.aliases import later

    return later("octavo", NAMES)(name)


def _native_code() -> Any:
    """The extension module. Raises ImportError with what to do where it was not built."""
    from importlib import import_module

    try:
        return import_module("octavo._native")
    except ModuleNotFoundError:
        raise ImportError(
            "Octavo's native code is not built for this Python. Build it with: pip install . "
            "(in a checkout: make build)."
        ) from None
