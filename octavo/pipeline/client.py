"""What the text side needs of an engine: a protocol that ThreadClient and test fakes satisfy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from octavo.types.engine import EngineRequest, TokenOut
from octavo.types.stats import EngineStats, RequestTimes

OnOutputs = Callable[[list[TokenOut]], None]
OnFailure = Callable[[BaseException | str], None]


class EngineClient(Protocol):
    """A running engine. Every method may be called from any thread; none blocks for longer than a step."""

    @property
    def alive(self) -> bool:
        """False once the engine has failed or was stopped."""

    @property
    def stalled(self) -> bool:
        """True while a step takes far too long; the engine may still come back."""

    def start(self, on_outputs: OnOutputs, on_failure: OnFailure) -> None:
        """Begin working. `on_outputs` gets one list per step, `on_failure` at most one call in all.

        Both are called in the engine's thread.
        """

    def submit(self, request: EngineRequest) -> None:
        """Queue one sequence. Raises QueueFull, PromptTooLong or Unavailable."""

    def abort(self, ids: Sequence[str]) -> None:
        """End sequences; each that was live still gets its TokenOut with finish ``abort``."""

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts, soon."""

    def rest(self) -> None:
        """Forget them and give back the memory of a KV cache that nothing uses, soon."""

    def stats(self) -> EngineStats:
        """A snapshot."""

    def stop(self, drain_s: float) -> None:
        """Finish what runs for at most `drain_s` seconds, then end. Blocks until it is over."""


class Recorder(Protocol):
    """Where the service reports tokens and finished sequences (the metrics)."""

    def on_tokens(self, index: int, n: int, now: float) -> None:
        """`n` tokens arrived for sequence number `index` of some job at time.monotonic() `now`."""

    def on_finish(self, times: RequestTimes) -> None:
        """One sequence is over."""
