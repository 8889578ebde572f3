"""One sequence's way back from tokens to text: detokenize, find stop strings, guard against loops."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.parsers.parser import ReplyParser
from octavo.parsers.sink import Parsed
from octavo.pipeline.detokenizer import Detokenizer
from octavo.pipeline.stop import LoopGuard, Repetition, StopStrings
from octavo.types.engine import Finish, TokenLogprobs, TokenOut
from octavo.types.job import CallPiece, Event

REPETITION = "repetition"
"""stop_reason of a reply that the loop guard ended (finish reason ``length``)."""


class _News:
    """What one engine output brought."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallPiece] = []
        self.reasoning_tokens = 0


class SequenceText:
    """The state of one sequence; gives exactly one Event with `finish`, and nothing after it."""

    def __init__(
        self,
        index: int,
        *,
        detokenizer: Detokenizer | None = None,
        stops: StopStrings | None = None,
        guard: LoopGuard | None = None,
        repetition: Repetition | None = None,
        parser: ReplyParser | None = None,
        min_tokens: int = 0,
        keep_end_text: bool = False,
        discard: bool = False,
    ) -> None:
        """`detokenizer` None: no text. `stops` count only after `min_tokens` tokens. `parser`: takes
        reasoning and tool calls out of the text; `stops` are then looked for in what remains.
        `keep_end_text`: keep the text of the token that ended the reply. `discard`: only the prompt was
        wanted (max_tokens 0).
        """
        self.index = index
        self.finished = False
        self.count = 0
        """Tokens given out so far."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._guard = guard
        self._repetition = repetition
        self._parser = parser
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
        news = _News()
        taken, finish = self._read(news, out.tokens, out.finish)
        if finish is not None:
            self.finished = True
        self.count += taken
        logprobs: Sequence[TokenLogprobs] = out.logprobs[:taken]
        return Event(
            index=self.index,
            text="".join(news.texts),
            reasoning="".join(news.reasoning),
            calls=tuple(news.calls),
            reasoning_tokens=news.reasoning_tokens,
            tokens=out.tokens[:taken],
            logprobs=tuple(logprobs),
            prompt_logprobs=out.prompt_logprobs,
            cached_tokens=out.cached_tokens,
            started_s=out.started_s,
            finish=finish,
        )

    def _read(self, news: _News, tokens: Sequence[int], finish: Finish | None) -> tuple[int, Finish | None]:
        """(tokens used, how it ends) of one output, whose texts go to `news`."""
        ended = finish is not None and finish.reason == "stop" and not finish.complete
        for taken, token in enumerate(tokens, start=1):
            is_end = ended and taken == len(tokens)
            text = "" if is_end and not self._keep_end_text else self._detokenize(token)
            stop = self._match(self._parse(news, text), news, self.count + taken)
            if stop is not None:
                return taken, Finish("stop", stop)
            if self._guard is not None and not is_end and self._guard.push(token, text):
                return taken, self._rest(news, Finish("length", REPETITION))
            if self._repetition is not None and not is_end and self._repetition.push(token):
                return taken, self._rest(news, Finish(REPETITION))
        if finish is not None:
            finish = self._rest(news, finish)
        return len(tokens), finish

    def _detokenize(self, token: int) -> str:
        return self._detokenizer.push(token) if self._detokenizer is not None else ""

    def _parse(self, news: _News, text: str) -> str:
        """The content in a token's text; reasoning and calls go to `news`."""
        if self._parser is None:
            return text
        parsed = self._parser.push(text)
        news.reasoning_tokens += self._parser.thinking
        return self._take(news, parsed)

    def _take(self, news: _News, parsed: Parsed) -> str:
        news.reasoning.append(parsed.reasoning)
        news.calls.extend(parsed.calls)
        return parsed.text

    def _match(self, text: str, news: _News, count: int) -> str | None:
        """Show `text`, of token number `count`, as far as no stop string ends it: that string, else None."""
        if self._stops is None or not text or count <= self._min_tokens:
            news.texts.append(text)
            return None
        shown, stop = self._stops.feed(text)
        news.texts.append(shown)
        return stop

    def _rest(self, news: _News, finish: Finish) -> Finish:
        """What detokenizer, parser and stop strings still hold at the end, and how it ends then."""
        text = self._detokenizer.flush() if self._detokenizer is not None else ""
        if self._parser is None:
            news.texts.append((self._stops.flush() + text) if self._stops is not None else text)
            return finish
        cut = finish.reason != "stop"
        text = self._take(news, self._parser.push(text)) + self._take(news, self._parser.finish(cut=cut))
        stop = self._match(text, news, self.count + 1)
        if stop is not None:
            return Finish("stop", stop) if finish.reason in ("stop", "length") else finish
        if self._stops is not None:
            news.texts.append(self._stops.flush())
        return finish

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
