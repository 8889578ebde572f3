"""One sequence's way back from tokens to text: detokenize, find stop strings, guard against loops."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.pipeline.detokenizer import Detokenizer
from octavo.pipeline.stop import LoopGuard, StopStrings
from octavo.types.engine import Finish, TokenLogprobs, TokenOut
from octavo.types.job import Event

REPETITION = "repetition"
"""stop_reason of a reply that the loop guard ended (finish reason ``length``)."""


class SequenceText:
    """The state of one sequence; gives exactly one Event with `finish`, and nothing after it."""

    def __init__(
        self,
        index: int,
        *,
        detokenizer: Detokenizer | None = None,
        stops: StopStrings | None = None,
        guard: LoopGuard | None = None,
        min_tokens: int = 0,
        keep_end_text: bool = False,
        discard: bool = False,
    ) -> None:
        """`detokenizer` None: no text. `stops` count only after `min_tokens` tokens. `keep_end_text`: keep
        the text of the token that ended the reply. `discard`: only the prompt was wanted (max_tokens 0).
        """
        self.index = index
        self.finished = False
        self.count = 0
        """Tokens given out so far."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._guard = guard
        self._min_tokens = min_tokens
        self._keep_end_text = keep_end_text
        self._discard = discard

    def push(self, out: TokenOut) -> Event | None:
        """The news in one engine output, None when there is none. A `finish` that the engine did not set was
        decided here: the caller then aborts the engine's sequence.
        """
        if self.finished:
            return None
        if self._discard:
            return self._push_discarded(out)
        if not out.tokens and out.finish is None:
            return None
        text, taken, finish = self._texts(out.tokens, out.finish)
        if finish is not None:
            self.finished = True
        self.count += taken
        logprobs: Sequence[TokenLogprobs] = out.logprobs[:taken]
        return Event(
            index=self.index,
            text=text,
            tokens=out.tokens[:taken],
            logprobs=tuple(logprobs),
            prompt_logprobs=out.prompt_logprobs,
            cached_tokens=out.cached_tokens,
            finish=finish,
        )

    def fail(self, finish: Finish) -> Event | None:
        """End the sequence from outside (engine failure, shutdown); None when it was over already."""
        return self.push(TokenOut(id="", finish=finish))

    def _texts(self, tokens: Sequence[int], finish: Finish | None) -> tuple[str, int, Finish | None]:
        """(new text, tokens used, how it ends) of one output."""
        parts: list[str] = []
        ended = finish is not None and finish.reason == "stop" and not finish.complete
        for taken, token in enumerate(tokens, start=1):
            is_end = ended and taken == len(tokens)
            text = "" if is_end and not self._keep_end_text else self._detokenize(token)
            shown, stop = self._match(text, self.count + taken)
            parts.append(shown)
            if stop is not None:
                return "".join(parts), taken, Finish("stop", stop)
            if self._guard is not None and not is_end and self._guard.push(token, text):
                parts.append(self._rest())
                return "".join(parts), taken, Finish("length", REPETITION)
        if finish is not None:
            parts.append(self._rest())
        return "".join(parts), len(tokens), finish

    def _detokenize(self, token: int) -> str:
        return self._detokenizer.push(token) if self._detokenizer is not None else ""

    def _match(self, text: str, count: int) -> tuple[str, str | None]:
        """(text to show, stop string found) for the text of token number `count`."""
        if self._stops is None or not text or count <= self._min_tokens:
            return text, None
        return self._stops.feed(text)

    def _rest(self) -> str:
        """What detokenizer and stop strings still hold at the end."""
        text = self._detokenizer.flush() if self._detokenizer is not None else ""
        return (self._stops.flush() + text) if self._stops is not None else text

    def _push_discarded(self, out: TokenOut) -> Event | None:
        """The prompt's numbers without the token that had to be sampled to get them."""
        if not out.tokens and out.finish is None:
            return None
        self.finished = True
        reason = out.finish if out.finish is not None and out.finish.reason in ("abort", "error") else None
        return Event(
            index=self.index,
            prompt_logprobs=out.prompt_logprobs,
            cached_tokens=out.cached_tokens,
            finish=reason or Finish("length"),
        )
