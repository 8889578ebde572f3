"""Beam search as a script asks for it and gets it: vLLM's public names and fields."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from octavo.types.logprobs import TokenLogprobDict
from octavo.types.lora import LoRARequest


class BeamSearchParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How wide and how long to search. `temperature` has no effect: beams are ranked, not drawn."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    """Scores are divided by the length of prompt and answer to this power."""
    include_stop_str_in_output: bool = False
    """Keep the end token."""
    skip_special_tokens: bool = True


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis; `tokens` and `text` hold the prompt too."""

    tokens: list[int]
    logprobs: list[TokenLogprobDict]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The `beam_width` best hypotheses of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)
