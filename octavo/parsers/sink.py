"""What a parser has found so far: content, reasoning and the pieces of tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from octavo.parsers.reader import Broken
from octavo.types.job import CallPiece

_MAX_SPACES = 4096
"""A longer run of white space is text, whatever follows it."""
_MAX_NAME = 256


class Parsed(NamedTuple):
    """News of a reply."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class Channel:
    """One of the texts of a reply. White space is held back until it is known whether it stands at a seam
    (the edge of a call or of the reasoning), where it is layout of the format and no text.
    """

    def __init__(self, at_seam: bool) -> None:
        self._parts: list[str] = []
        self._held = ""
        self._said = False
        self._at_seam = at_seam
        self._flood = False

    def add(self, text: str) -> None:
        """More of the text."""
        body = text.rstrip()
        if body:
            self._held, rest = "", self._held
            tail = text[len(body) :]
            opens = self._at_seam and not self._said
            self._parts.append(body.lstrip() if opens else rest + body)
            self._said, self._at_seam, self._flood = True, False, False
            text = tail
        self._held += text
        if self._flood or len(self._held) > _MAX_SPACES:
            self._flood = True
            if self._said or not self._at_seam:
                self._parts.append(self._held)
            self._held = ""

    def seam(self) -> None:
        """A call or the other channel comes between what was said and what follows."""
        self._at_seam, self._flood = True, False

    def close(self) -> None:
        """The end: white space counts unless it stands at a seam."""
        if not self._at_seam:
            self._parts.append(self._held)
        self._held = ""

    def drain(self) -> str:
        """What was added since the last time and may be shown."""
        text = "".join(self._parts)
        self._parts.clear()
        return text


class Sink:
    """Where a format's parser puts what it finds."""

    def __init__(
        self, tools: Mapping[str, Mapping[str, Any]], *, strict: bool, whole: bool, one_call: bool
    ) -> None:
        """`tools`: the offered functions' parameter schemas by name. `strict`: no others count as calls.
        `whole`: a call is given only when it is complete. `one_call`: those after the first are dropped.
        """
        self.tools = tools
        self.thinking = False
        """Whether the text being read is reasoning."""
        self.content = Channel(at_seam=False)
        self.reasoning = Channel(at_seam=True)
        self._strict = strict
        self._whole = whole
        self._one_call = one_call
        self._pieces: list[CallPiece] = []
        self._index = 0
        self._call: tuple[str, str] | None = None
        self._held: list[str] = []
        self._committed = False

    def seam(self) -> None:
        """Something that is no text ended here."""
        self.content.seam()

    def call(self, name: str, call_id: str = "") -> None:
        """A call begins. Raises Broken when `name` is no function's name."""
        proper = 0 < len(name) <= _MAX_NAME and name.isprintable() and not any(map(str.isspace, name))
        if not proper or (self._strict and self.tools and name not in self.tools):
            raise Broken
        self._call = (name, call_id or f"chatcmpl-tool-{uuid.uuid4().hex}")
        self._held = []
        self._committed = False

    def arguments(self, piece: str) -> None:
        """More of the arguments' JSON text."""
        if self._committed:
            self._give(CallPiece(index=self._index, arguments=piece))
            return
        self._held.append(piece)
        # A lone brace proves nothing yet: text in braces is common.
        if not self._whole and (len(self._held) > 1 or len(piece) > 1):
            self._commit()

    def hold(self, piece: str) -> None:
        """More of the arguments of a call that is not given before its end, as its id may come last."""
        self._held.append(piece)

    def end_call(self, call_id: str = "") -> None:
        """The call is complete; `call_id`: its id where that came last."""
        if not self._committed:
            if call_id and self._call is not None:
                self._call = (self._call[0], call_id)
            self._commit()
        self._leave()

    @property
    def begun(self) -> bool:
        """Whether a call is open and something is known of its arguments."""
        return self._call is not None and (self._committed or len("".join(self._held)) > 1)

    def cut(self) -> None:
        """The reply has ended in the middle of a call: what there is of it is given."""
        if self._call is not None:
            self.end_call()

    def give_up(self) -> bool:
        """The call is broken. True when it was given out already, so that its text must not be given too."""
        committed, open_call = self._committed, self._call is not None
        if open_call and committed:
            self._leave()
        self._call = None
        return open_call and committed

    def _commit(self) -> None:
        assert self._call is not None
        name, call_id = self._call
        arguments = "".join(self._held)
        self._held = []
        self._committed = True
        self._give(CallPiece(index=self._index, id=call_id, name=name, arguments=arguments))

    def _leave(self) -> None:
        self._index += 1
        self._call = None
        self._committed = False
        self.seam()

    def _give(self, piece: CallPiece) -> None:
        if not (self._one_call and piece.index):
            self._pieces.append(piece)

    def drain(self) -> Parsed:
        """What was found since the last time."""
        pieces, self._pieces = self._pieces, []
        return Parsed(self.content.drain(), self.reasoning.drain(), _joined(pieces))


def _joined(pieces: list[CallPiece]) -> tuple[CallPiece, ...]:
    """Neighbouring pieces of one call as one."""
    if len(pieces) < 2:
        return tuple(pieces)
    groups: list[list[CallPiece]] = []
    for piece in pieces:
        if groups and groups[-1][0].index == piece.index:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(
        CallPiece(
            index=group[0].index,
            id=group[0].id,
            name=group[0].name,
            arguments="".join(piece.arguments for piece in group),
        )
        for group in groups
    )
