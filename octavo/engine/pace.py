"""How much of a prompt goes into one step, so that a step stays short on a slow machine."""

from __future__ import annotations

_FIRST_TOKENS = 256
_MULTIPLE = 16
_ALONE = 4


class Pace:
    """Learns how many tokens a second the machine computes and sizes the prompt parts of steps by it.

    Results do not depend on it (a row's numbers do not depend on how a prompt is cut), only waiting does:
    running sequences get their next token, and aborts take effect, when a step ends.
    """

    def __init__(self, target_s: float | None) -> None:
        """`target_s`: seconds for a step with decodes, a quarter of one without. None: no bound."""
        self._target_s = target_s
        self._tokens_per_s = 0.0

    def tokens(self, decodes: int) -> int | None:
        """Prompt tokens for a step that also computes `decodes` single tokens; None when unbounded."""
        if self._target_s is None:
            return None
        if not self._tokens_per_s:
            return _FIRST_TOKENS
        seconds = self._target_s if decodes else self._target_s * _ALONE
        return max(1, int(self._tokens_per_s * seconds) // _MULTIPLE) * _MULTIPLE

    def note(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` took `seconds`. Small steps say nothing: they wait for memory, not for sums."""
        if tokens < _MULTIPLE or seconds <= 0.0:
            return
        speed = tokens / seconds
        self._tokens_per_s = (self._tokens_per_s + speed) / 2 if self._tokens_per_s else speed
