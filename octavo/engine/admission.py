"""The door of the waiting queue: refuses at once what can never run and what there is no room for."""

from __future__ import annotations

import math
import threading

from octavo.engine.settings import EngineSettings
from octavo.errors import BadRequest, PromptTooLong, QueueFull
from octavo.types.engine import EngineRequest

_WINDOW_S = 30.0
_IDS = 1 << 31
_LONGEST_WAIT_S = 600.0


class Admission:
    """Counts what waits, in requests and tokens. Any thread may enter; no call waits for a step."""

    def __init__(self, settings: EngineSettings, cache_tokens: int) -> None:
        """`cache_tokens`: what the whole KV cache holds."""
        self._settings = settings
        self._cache_tokens = cache_tokens
        self._lock = threading.Lock()
        self._requests = 0
        self._tokens = 0
        self._rate_tokens = 0.0
        self._rate_s = 0.0

    @property
    def max_total_tokens(self) -> int:
        """Prompt and output of one sequence together."""
        return min(self._settings.max_model_len, self._cache_tokens)

    @property
    def waiting(self) -> int:
        """Sequences that have entered and not started."""
        return self._requests

    def enter(self, request: EngineRequest) -> None:
        """Reserve a place in the queue. Raises PromptTooLong, BadRequest or QueueFull."""
        self._check(request)
        tokens = len(request.prompt)
        bound = self._settings
        with self._lock:
            # A prompt longer than the whole bound may still enter an empty queue: else it never could.
            crowded = self._requests > 0 and self._tokens + tokens > bound.max_queued_tokens
            if self._requests >= bound.max_queued_requests or crowded:
                raise QueueFull(
                    f"{self._requests} requests with {self._tokens} prompt tokens are waiting; "
                    f"the queue takes {bound.max_queued_requests} requests "
                    f"and {bound.max_queued_tokens} tokens.",
                    retry_after_s=self._retry_after_s(),
                    hint="Try again later.",
                )
            self._requests += 1
            self._tokens += tokens

    def leave(self, request: EngineRequest) -> None:
        """The sequence has started, or ended without starting."""
        with self._lock:
            self._requests -= 1
            self._tokens -= len(request.prompt)

    def note(self, prompt_tokens: int, seconds: float) -> None:
        """Remember how fast prompts went in the last step (about the last half minute counts)."""
        keep = math.exp(-seconds / _WINDOW_S)
        self._rate_tokens = self._rate_tokens * keep + prompt_tokens
        self._rate_s = self._rate_s * keep + seconds

    def _retry_after_s(self) -> float:
        """When half of the queue will have moved on, at the recent rate; between 1 s and 10 minutes."""
        if self._rate_tokens <= 0.0:
            return 1.0
        seconds = self._tokens / 2 * self._rate_s / self._rate_tokens
        return float(min(max(1.0, math.ceil(seconds)), _LONGEST_WAIT_S))

    def _check(self, request: EngineRequest) -> None:
        prompt = request.prompt
        if not prompt:
            raise BadRequest("The prompt has no tokens.", hint="Send at least one.", param="prompt")
        pooling = request.pooling
        answer = 1 if pooling is None else 0
        if len(prompt) + answer > self._settings.max_model_len:
            raise PromptTooLong(len(prompt), self._settings.max_model_len - answer)
        if pooling is not None and pooling.whole and len(prompt) > self._settings.max_num_batched_tokens:
            raise PromptTooLong(
                len(prompt),
                self._settings.max_num_batched_tokens,
                hint="Its tokens are computed in one step: shorten it or raise --max-num-batched-tokens.",
            )
        if len(prompt) + answer > self._cache_tokens:
            raise PromptTooLong(
                len(prompt),
                self._cache_tokens - answer,
                hint="The KV cache holds no more: shorten the prompt or raise --kv-cache-memory.",
            )
        if request.sampling.max_tokens < 0:
            raise BadRequest(
                f"max_tokens is {request.sampling.max_tokens}.", hint="Give 0 or more.", param="max_tokens"
            )
        vocab = self._settings.vocab or _IDS
        if min(prompt) < 0 or max(prompt) >= vocab:
            worst = min(prompt) if min(prompt) < 0 else max(prompt)
            raise BadRequest(
                f"Token id {worst} is outside the vocabulary of {vocab} tokens.",
                hint=f"Use ids from 0 to {vocab - 1}.",
                param="prompt",
            )
