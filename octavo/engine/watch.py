"""Notices a step that does not come back: the process answers, but the engine is stuck."""

from __future__ import annotations

_PATIENCE_S = 10.0
_TIMES = 5.0
"""How many times longer than the longest step so far a step may take, for each token it computes."""
_FIRST_STEP_S = 300.0
"""Patience while nothing is known of the machine."""


class StepWatch:
    """Knows for how long the step under way has run. Written by the engine's thread, read by any.

    A slow machine is not a stuck one: a step of n tokens never takes longer than n steps of one token, so the
    longest step so far, scaled up to the tokens of this one, bounds what is still healthy.
    """

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._tokens = 0
        self._longest_s = 0.0
        self._longest_tokens = 0

    def begin(self, tokens: int, now_s: float) -> None:
        """A step of `tokens` begins at `now_s` (any monotonic clock)."""
        self._tokens = tokens
        self._began_s = now_s

    def end(self, now_s: float) -> None:
        """The step is over, well or not."""
        if self._began_s is not None and self._tokens and now_s - self._began_s > self._longest_s:
            self._longest_s, self._longest_tokens = now_s - self._began_s, self._tokens
        self._began_s = None

    def stalled(self, now_s: float) -> bool:
        """Whether the step under way has taken too long for a healthy engine."""
        began_s = self._began_s
        if began_s is None:
            return False
        if not self._longest_tokens:
            return now_s - began_s > _FIRST_STEP_S
        scale = max(1.0, self._tokens / self._longest_tokens)
        return now_s - began_s > max(_PATIENCE_S, _TIMES * scale * self._longest_s)
