"""Events to Ollama's replies: what generate and chat have in common."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.responses import Response

from octavo.server.errors import error_body
from octavo.server.ollama.bodies import (
    Counts,
    OllamaCandidate,
    OllamaChatReply,
    OllamaFunction,
    OllamaGenerateReply,
    OllamaLogprob,
    OllamaToolCall,
)
from octavo.server.runs import Run
from octavo.server.spelling import Speller, best, finite
from octavo.server.state import State
from octavo.server.wire import Stream, reply
from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import CallPiece

NDJSON = "application/x-ndjson"
R = TypeVar("R", OllamaChatReply, OllamaGenerateReply)
_ENCODE = msgspec.json.Encoder().encode


def line(made: msgspec.Struct) -> bytes:
    """One line of a stream."""
    return _ENCODE(made) + b"\n"


class Maker(Protocol):
    """Makes the replies of one run."""

    def lines(self) -> AsyncGenerator[bytes, None]:
        """Those of a stream."""

    async def whole(self) -> msgspec.Struct:
        """The one of a request that is not streamed."""


async def deliver(
    make: Maker, run: Run, state: State, path: str, streamed: bool, headers: dict[str, str]
) -> Response:
    """The response of a run that has begun."""
    if streamed:
        return Stream(
            make.lines(),
            state.settings,
            on_close=run.close,
            on_error=lambda error: error_body(error, path) + b"\n",
            media_type=NDJSON,
            headers=headers,
        )
    async with run:
        response = reply(await make.whole())
    response.headers.update(headers)
    return response


def end(made: R, run: Run, finish: Finish) -> R:
    """`made` as the last reply, with the counts."""
    made.done = True
    for name, value in msgspec.structs.asdict(counts(run, finish)).items():
        setattr(made, name, value)
    return made


def counts(run: Run, finish: Finish) -> Counts:
    """Tokens and times of a run that is over. Times are at least 1 ns: clients divide by them."""
    clock = run.clock
    return Counts(
        done_reason=finish.reason if finish.reason in ("length", "abort") else "stop",
        total_duration=_ns(clock.last_s - clock.arrived_s),
        load_duration=_ns(clock.taken_s - clock.arrived_s),
        prompt_eval_count=run.usage.prompt,
        prompt_eval_duration=_ns(clock.first_s - clock.taken_s),
        eval_count=run.usage.completion,
        eval_duration=_ns(clock.last_s - clock.first_s),
    )


def _ns(seconds: float) -> int:
    return max(1, int(seconds * 1e9))


class Calls:
    """Tool calls from their pieces: a call is given out once it is whole, as Ollama has no half calls."""

    def __init__(self) -> None:
        self._made = 0
        self._open: dict[int, tuple[str, str, list[str]]] = {}

    def add(self, pieces: Iterable[CallPiece]) -> None:
        """Take in news."""
        for piece in pieces:
            call = self._open.setdefault(piece.index, (piece.id, piece.name, []))
            call[2].append(piece.arguments)

    def whole(self, *, over: bool) -> tuple[list[OllamaToolCall], str]:
        """(calls that are complete, the text of those whose arguments are no JSON object).

        A call is complete when the next one has begun, and at the end.
        """
        newest = max(self._open, default=0)
        done = [index for index in sorted(self._open) if over or index < newest]
        calls: list[OllamaToolCall] = []
        broken = ""
        for index in done:
            name_id, name, parts = self._open.pop(index)
            text = "".join(parts)
            arguments = _object(text)
            if arguments is None:
                broken += f"{name}({text})"
                continue
            calls.append(
                OllamaToolCall(
                    name_id or f"call_{uuid.uuid4().hex[:8]}", OllamaFunction(self._made, name, arguments)
                )
            )
            self._made += 1
        return calls, broken


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object, None for anything else; no text at all is an empty one."""
    try:
        value = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Logprobs:
    """Log-probabilities of one answer in Ollama's shape."""

    def __init__(self, state: State, wanted: bool, top: int) -> None:
        self._speller = Speller(state.vocabulary)
        self._wanted = wanted
        self._top = top

    def make(self, entries: Iterable[TokenLogprobs]) -> list[OllamaLogprob] | msgspec.UnsetType:
        """The next positions; UNSET where nobody asked."""
        if not self._wanted:
            return msgspec.UNSET
        made = []
        for entry in entries:
            top: list[OllamaCandidate] | msgspec.UnsetType = msgspec.UNSET
            if self._top:
                found = ((self._speller.other(t), finite(v)) for t, v in best(entry, self._top))
                top = [OllamaCandidate(text, value, tuple(text.encode())) for text, value in found]
            text = self._speller.chosen(entry.ids[0])
            made.append(OllamaLogprob(text, finite(entry.values[0]), tuple(text.encode()), top))
        return made
