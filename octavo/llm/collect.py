"""Events of one request become RequestOutputs: cumulative, deltas, or one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import Event, Started
from octavo.types.logprobs import FlatLogprobs, Logprob, Logprobs, PromptLogprobs, TokenLogprobDict
from octavo.types.lora import LoRARequest
from octavo.types.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.types.sampling import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TokenBytes = Callable[[int], bytes]
"""The bytes that a token adds to the text; b"" for an unknown id."""


class TokenTexts:
    """What `decoded_token` says along one sequence.

    A token that ends inside a character is ""; the one that completes it holds the whole character.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._pending = b""

    def text(self, token_id: int) -> str:
        """The text of `token_id` if it came next."""
        return self._read(token_id)[0]

    def advance(self, token_id: int) -> None:
        """`token_id` came."""
        self._pending = self._read(token_id)[1]

    def _read(self, token_id: int) -> tuple[str, bytes]:
        own = self._token_bytes(token_id)
        for data in (self._pending + own, own):
            try:
                return data.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    return data[: error.start].decode("utf-8"), data[error.start :]
        return own.decode("utf-8", errors="replace"), b""


def logprob_dict(position: TokenLogprobs, texts: TokenTexts) -> TokenLogprobDict:
    """Token id to Logprob at one position, the chosen token first; moves `texts` past the chosen one."""
    found: TokenLogprobDict = {}
    for token_id, value, rank in zip(position.ids, position.values, position.ranks, strict=True):
        if token_id not in found:
            found[token_id] = Logprob(value, rank, texts.text(token_id))
    texts.advance(position.ids[0])
    return found


class _Answer:
    """One of the n sequences: everything so far, and how much of it deltas have shown."""

    def __init__(self, index: int, wants_logprobs: bool, flat: bool, token_bytes: TokenBytes) -> None:
        self.index = index
        self._flat = flat
        self.finish: Finish | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: Logprobs | None = self._none() if wants_logprobs else None
        self._sum = 0.0
        self._token_texts = TokenTexts(token_bytes)

    def _none(self) -> Logprobs:
        """The kind of list that is wanted, empty."""
        return FlatLogprobs() if self._flat else []

    def apply(self, event: Event) -> None:
        if event.text:
            self._texts.append(event.text)
        self._tokens.extend(event.tokens)
        if self._logprobs is not None:
            for position in event.logprobs:
                self._logprobs.append(logprob_dict(position, self._token_texts))
                self._sum += position.values[0]
        self.finish = event.finish or self.finish

    def whole(self) -> CompletionOutput:
        """Everything so far."""
        self._texts = ["".join(self._texts)]
        return self._output(self._texts[0], list(self._tokens), _copy(self._logprobs))

    def delta(self) -> CompletionOutput:
        """What came since the last delta."""
        text, tokens, logprobs = "".join(self._texts), self._tokens, self._logprobs
        self._texts, self._tokens = [], []
        self._logprobs = self._none() if logprobs is not None else None
        return self._output(text, tokens, logprobs)

    def _output(self, text: str, tokens: list[int], logprobs: Logprobs | None) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=tokens,
            cumulative_logprob=self._sum if logprobs is not None else None,
            logprobs=logprobs,
            finish_reason=self.finish.reason if self.finish else None,
            stop_reason=self.finish.stop_reason if self.finish else None,
        )


def _copy(logprobs: Logprobs | None) -> Logprobs | None:
    return None if logprobs is None else logprobs[:]


class Collector:
    """The state of one request; `apply` events, then ask for `whole` or `delta` outputs."""

    def __init__(
        self,
        request_id: str,
        started: Started,
        sampling: SamplingParams,
        token_bytes: TokenBytes,
        *,
        best_of: int | None = None,
        lora_request: LoRARequest | None = None,
    ) -> None:
        """`best_of`: that many sequences run, and the n with the highest cumulative logprob are kept.
        `lora_request`: shown in the outputs.
        """
        self.request_id = request_id
        self._prompt = started.prompt
        self._prompt_ids = list(started.prompt_ids)
        self._token_bytes = token_bytes
        self._n = sampling.n
        self.best_of = best_of
        self._lora_request = lora_request
        self._keep_logprobs = sampling.num_logprobs is not None
        self._flat = sampling.flat_logprobs
        needed = self._keep_logprobs or best_of is not None
        self._answers = [
            _Answer(index, needed, self._flat, token_bytes) for index in range(best_of or sampling.n)
        ]
        self._prompt_logprobs: PromptLogprobs | None = None
        self._named = sampling.prompt_logprob_token_ids
        self._named_logprobs: NDArray[np.float32] | None = None
        self._cached: int | None = None
        self._metrics = RequestMetrics(arrival_time=time.time())
        self.output_tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt as it was run."""
        return len(self._prompt_ids)

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return all(answer.finish is not None for answer in self._answers)

    @property
    def error(self) -> str | None:
        """What went wrong, when a sequence ended in an error."""
        for answer in self._answers:
            if answer.finish is not None and answer.finish.reason == "error":
                return answer.finish.error or "The engine failed."
        return None

    def apply(self, event: Event) -> None:
        """Take in one event."""
        now = time.monotonic()
        if event.tokens:
            self._metrics.first_token_time = self._metrics.first_token_time or now
            self._metrics.last_token_time = now
            self.output_tokens += len(event.tokens)
        if event.prompt_logprobs and self._named is not None:
            self._named_logprobs = _matrix(event.prompt_logprobs, self._named)
        elif event.prompt_logprobs and self._prompt_logprobs is None:
            self._prompt_logprobs = self._prompt_dicts(event.prompt_logprobs)
        self._cached = max(self._cached or 0, event.cached_tokens)
        self._answers[event.index].apply(event)
        if event.finish is not None:
            self._metrics.finished_time = now

    def _prompt_dicts(self, positions: tuple[TokenLogprobs | None, ...]) -> PromptLogprobs:
        texts = TokenTexts(self._token_bytes)
        found: PromptLogprobs = FlatLogprobs() if self._flat else []
        found.extend(None if position is None else logprob_dict(position, texts) for position in positions)
        return found

    def whole(self) -> RequestOutput:
        """All sequences with everything so far; under best_of the best n, renumbered from 0."""
        outputs = [answer.whole() for answer in self._answers]
        if self.best_of is not None:
            outputs.sort(key=lambda output: -(output.cumulative_logprob or 0.0))
            outputs = outputs[: self._n]
            for index, output in enumerate(outputs):
                output.index = index
                if not self._keep_logprobs:
                    output.logprobs, output.cumulative_logprob = None, None
        return self._output(outputs)

    def delta(self, index: int) -> RequestOutput:
        """What is new of sequence `index`."""
        return self._output([self._answers[index].delta()])

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        for output in outputs:
            output.lora_request = self._lora_request
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=outputs,
            finished=self.finished,
            metrics=self._metrics,
            num_cached_tokens=self._cached,
            lora_request=self._lora_request,
            prompt_token_id_logprobs=self._named_logprobs,
        )


def _matrix(
    positions: tuple[TokenLogprobs | None, ...], named: list[int] | list[list[int]]
) -> NDArray[np.float32]:
    """[positions, k]: the log-probabilities of the tokens that were named, without the prompt's own."""
    import numpy as np

    width = len(named[0] if isinstance(named[0], list) else named)
    rows = [position.values[1:] for position in positions if position is not None]
    return np.array(rows, np.float32).reshape(len(rows), width)
