"""What a caller may demand of the form of an answer: vLLM's public `StructuredOutputsParams`."""

from __future__ import annotations

from typing import Any

import msgspec


class StructuredOutputsParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """At most one of the six forms; every answer then matches it. `SamplingParams.structured_outputs`."""

    json: str | dict[str, Any] | bool | None = None
    """A JSON Schema, as text or parsed."""
    regex: str | None = None
    choice: list[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """GBNF or Lark."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
