"""Objects that scripts for vLLM pass where a keyword takes JSON: their fields are what is read."""

from __future__ import annotations

from types import SimpleNamespace


class PoolerConfig(SimpleNamespace):
    """`LLM(pooler_config=PoolerConfig(pooling_type="MEAN"))`."""


class CompilationConfig(SimpleNamespace):
    """Of a compiler that there is none of."""


class StructuredOutputsConfig(SimpleNamespace):
    """Of backends that there is one of."""


class KVTransferConfig(SimpleNamespace):
    """Of more machines than one."""
