"""From the pipeline's events to a response: one machine for streams, replies and background work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from octavo.server.errors import ErrorInfo
from octavo.server.openai.logprobs import Speller, chat_logprobs
from octavo.server.openai.replies import TokenLogprob
from octavo.server.openai.responses.items import new_id
from octavo.server.openai.responses.replies import (
    ArgumentsEvent,
    FunctionCall,
    IncompleteDetails,
    InputDetails,
    ItemEvent,
    ItemStatus,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    RawMessage,
    ReasoningItem,
    ReasoningText,
    ResponseError,
    ResponseReply,
    ResponseUsage,
    StateEvent,
    TextEvent,
)
from octavo.server.runs import Usage
from octavo.types.engine import Finish
from octavo.types.job import CallPiece, Event

_ENCODE = msgspec.json.Encoder().encode
_TEXT, _THOUGHT = "output_text", "reasoning_text"


class Renderer:
    """Builds `reply` from events; with `streaming` also the bytes of every event, for :meth:`take`."""

    def __init__(
        self,
        reply: ResponseReply,
        *,
        streaming: bool,
        speller: Speller | None = None,
        top: int = 0,
        reasoning: bool = True,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """`speller`: texts come with log-probabilities, `top` alternatives each. `decode`: the answer comes
        as raw text and tokens too."""
        self.reply = reply
        self.sequence = 0
        """The number of the next event."""
        self._streaming = streaming
        self._speller = speller
        self._top = top
        self._reasoning = reasoning
        self._pending: list[bytes] = []
        self._open: OutputItem | None = None
        self._calls: dict[int, int] = {}
        """From a call's index to its place in the output."""
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._unspent: list[TokenLogprob] = []
        """Of tokens whose text is still to come."""
        self._decode = decode
        self._tokens: list[int] = []

    def take(self) -> bytes:
        """The events made since the last call."""
        made = b"".join(self._pending)
        self._pending.clear()
        return made

    def begin(self) -> None:
        """response.created, and queued where the work is in the background, then in_progress."""
        self._state("created")
        if self.reply.status == "queued":
            self._state("queued")
        self.reply.status = "in_progress"
        self._state("in_progress")

    def add(self, event: Event) -> None:
        """Take in one event of the only sequence."""
        if self._decode is not None:
            self._tokens.extend(event.tokens)
        if self._speller is not None and event.logprobs:
            self._unspent += chat_logprobs(event.logprobs, self._top, self._speller).content or ()
        if event.reasoning and self._reasoning:
            self._think(event.reasoning)
        if event.text:
            self._say(event.text)
        if event.text or event.reasoning or event.calls:
            self._unspent = []
        for piece in event.calls:
            self._call(piece)

    def finish(self, finish: Finish, usage: Usage) -> None:
        """The end as the engine saw it: completed, incomplete, or failed when the server stopped it."""
        whole = finish.reason in ("stop", "tool_calls")
        if not self.reply.output:
            self._start_message()
        self._close("completed" if whole else "incomplete")
        self._count(usage)
        if self._decode is not None:
            raw = RawMessage(message=self._decode(self._tokens), tokens=self._tokens)
            self.reply.output_messages = [raw]
        if finish.reason == "abort":
            self._failed("The server stopped before the answer was finished.")
        elif whole:
            self.reply.status, self.reply.completed_at = "completed", int(time.time())
            self._state("completed")
        else:
            self.reply.status = "incomplete"
            self.reply.incomplete_details = IncompleteDetails(reason="max_output_tokens")
            self._state("incomplete")

    def fail(self, info: ErrorInfo) -> None:
        """An error that ended the work."""
        self._close("incomplete")
        self._failed(info.message)

    def cancel(self) -> None:
        """The client wants no more of it."""
        self._close("incomplete")
        self.reply.status = "cancelled"

    def _failed(self, message: str) -> None:
        self.reply.status = "failed"
        self.reply.error = ResponseError(code="server_error", message=message)
        self._state("failed")

    def _count(self, usage: Usage) -> None:
        self.reply.usage = ResponseUsage(
            input_tokens=usage.prompt,
            input_tokens_details=InputDetails(cached_tokens=usage.cached),
            output_tokens=usage.completion,
            output_tokens_details=OutputDetails(reasoning_tokens=usage.reasoning),
            total_tokens=usage.prompt + usage.completion,
        )

    def _think(self, text: str) -> None:
        if not isinstance(self._open, ReasoningItem):
            self._start(ReasoningItem(id=new_id("rs")))
            self._part(ReasoningText(), "added")
        self._pieces.append(text)
        self._text_event(f"response.{_THOUGHT}.delta", delta=text)

    def _say(self, text: str) -> None:
        if not isinstance(self._open, OutputMessage):
            self._start_message()
        self._pieces.append(text)
        self._logprobs += self._unspent
        self._text_event(f"response.{_TEXT}.delta", delta=text, logprobs=self._unspent)

    def _call(self, piece: CallPiece) -> None:
        place = self._calls.get(piece.index)
        if place is None:
            name = piece.id or new_id("call")
            self._start(FunctionCall(id=new_id("fc"), call_id=name, name=piece.name))
            place = self._calls[piece.index] = len(self.reply.output) - 1
        item = self.reply.output[place]
        assert isinstance(item, FunctionCall)
        if piece.arguments:
            item.arguments += piece.arguments
            kind = "response.function_call_arguments.delta"
            self._emit(ArgumentsEvent, kind, item_id=item.id, output_index=place, delta=piece.arguments)

    def _start_message(self) -> None:
        self._start(OutputMessage(id=new_id("msg")))
        self._part(OutputText(), "added")

    def _start(self, item: OutputItem) -> None:
        """Begin another item; the one before it is over."""
        self._close("completed")
        self.reply.output.append(item)
        self._open = item
        self._emit(ItemEvent, "response.output_item.added", item=item, output_index=self._place)

    def _close(self, status: ItemStatus) -> None:
        """End the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(self._pieces)
        if isinstance(item, FunctionCall):
            self._emit(
                ArgumentsEvent,
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=self._place,
                name=item.name,
                arguments=item.arguments,
            )
        elif isinstance(item, OutputMessage):
            part = OutputText(text=text, logprobs=self._logprobs)
            item.content = [part]
            self._text_event(f"response.{_TEXT}.done", text=text, logprobs=self._logprobs)
            self._part(part, "done")
        else:
            thought = ReasoningText(text=text)
            item.content = [thought]
            self._text_event(f"response.{_THOUGHT}.done", text=text)
            self._part(thought, "done")
        self._pieces, self._logprobs = [], []
        item.status = status
        self._emit(ItemEvent, "response.output_item.done", item=item, output_index=self._place)

    @property
    def _place(self) -> int:
        """Where in the output the newest item stands."""
        return len(self.reply.output) - 1

    def _part(self, part: OutputText | ReasoningText, what: str) -> None:
        self._emit(
            PartEvent,
            f"response.content_part.{what}",
            part=part,
            item_id=self.reply.output[-1].id,
            output_index=self._place,
        )

    def _text_event(self, kind: str, **fields: Any) -> None:
        self._emit(TextEvent, kind, item_id=self.reply.output[-1].id, output_index=self._place, **fields)

    def _state(self, what: str) -> None:
        self._emit(StateEvent, f"response.{what}", response=self.reply)

    def _emit(self, make: type[msgspec.Struct], kind: str, **fields: Any) -> None:
        """Encode at once, as what an event holds goes on changing."""
        if self._streaming:
            event = make(type=kind, sequence_number=self.sequence, **fields)
            self._pending.append(b"event: " + kind.encode() + b"\ndata: " + _ENCODE(event) + b"\n\n")
            self.sequence += 1
