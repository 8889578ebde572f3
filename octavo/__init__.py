"""Octavo: vLLM's whole job on the machine a person already has.

Names load on first use, so that ``import octavo`` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.llm",
    "SamplingParams": "octavo.types.sampling",
    "StructuredOutputsParams": "octavo.types.structured",
    "BeamSearchParams": "octavo.types.beam",
    "LoRARequest": "octavo.types.lora",
    "PoolingParams": "octavo.types.pooling",
    "PoolingRequestOutput": "octavo.types.pooling",
    "EmbeddingRequestOutput": "octavo.types.pooling",
    "ClassificationRequestOutput": "octavo.types.pooling",
    "ScoringRequestOutput": "octavo.types.pooling",
    "RequestOutput": "octavo.types.outputs",
    "CompletionOutput": "octavo.types.outputs",
}

if TYPE_CHECKING:
    from octavo.llm import LLM, AsyncLLM
    from octavo.types.beam import BeamSearchParams
    from octavo.types.lora import LoRARequest
    from octavo.types.outputs import CompletionOutput, RequestOutput
    from octavo.types.pooling import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingParams,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )
    from octavo.types.sampling import SamplingParams
    from octavo.types.structured import StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "LoRARequest",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from octavo.collector import paused

        with paused():
            return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
