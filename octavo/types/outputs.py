"""What `LLM.generate` and `AsyncLLM.generate` hand back, with vLLM's names and fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.types.logprobs import Logprobs, PromptLogprobs
from octavo.types.lora import LoRARequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True)
class CompletionOutput:
    """One of the n answers of a request; cumulative or a delta, as the request's output_kind says."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum of the chosen tokens' logprobs so far (also under DELTA); None when logprobs were not asked for."""
    logprobs: Logprobs | None = None
    """As long as `token_ids`; None when not asked for."""
    finish_reason: str | None = None
    """stop, length, abort, error or repetition; None while the answer runs."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for the end token and for other reasons."""
    lora_request: LoRARequest | None = None

    def finished(self) -> bool:
        """True once `finish_reason` is known."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request: `arrival_time` from time.time(), the others in seconds of time.monotonic()."""

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request's state: the prompt as it was run and the answers so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None
    """As long as the prompt, first entry None; None when not asked for."""
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    lora_request: LoRARequest | None = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens that came from the prefix cache."""
    kv_transfer_params: dict[str, Any] | None = field(default=None, repr=False)
    prompt_token_id_logprobs: NDArray[np.float32] | None = field(default=None, repr=False)
    """[positions, k], what prompt_logprob_token_ids asked for: row i is of the prompt's token
    prompt_logprob_start + i + 1.
    """
