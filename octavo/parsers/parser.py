"""The machine: one reply's text in, piece by piece; content, reasoning and tool calls out.

It never raises, whatever the text; a call that is broken comes back as text; and a reply gives the same
answer however it is cut into pieces. Time is linear in the text. What is held back is a mark that is not
complete, the name of a call, one argument of the formats that write arguments as tags, and white space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.log import logger
from octavo.parsers.formats import ReasoningFormat, ToolFormat
from octavo.parsers.harmony import MARKS, harmony
from octavo.parsers.json_calls import forced_arguments, json_calls
from octavo.parsers.reader import Broken, Marks, Reader, Steps
from octavo.parsers.sink import Parsed, Sink

log = logger(__name__)


class ReplyFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes a reply, as far as it is more than text."""

    tool_name: str = ""
    reasoning_name: str = ""
    """vLLM's names of the formats, for people."""
    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    harmony: bool = False

    def marks(self, tools: bool = True) -> tuple[str, ...]:
        """All strings that mean something; `tools` False: without those of calls."""
        if self.harmony:
            return MARKS
        found: tuple[str, ...] = ()
        if self.reasoning is not None:
            found += self.reasoning.starts + self.reasoning.ends + self.reasoning.drops
        if tools and self.tools is not None:
            found += self.tools.opens + self.tools.drops + self.tools.closes
        return found


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What one request makes of the format."""

    tools: Sequence[Mapping[str, Any]] = ()
    """The offered tools in OpenAI's shape; without any, nothing is taken for a call."""
    opened: bool | None = None
    """Whether the prompt has opened the reasoning (True), closed it (False), or neither."""
    whole: bool = False
    """Nobody reads the pieces: a call is given when it is complete, so that a broken one is text in full."""
    one_call: bool = False
    forced: str | None = None
    """The reply is held to calls in plain JSON: a function's name, or "" for a list of any calls."""
    only_calls: bool = False
    """The reply is held to calls in the model's own marks."""


class ReplyParser:
    """Takes one reply apart: ``push`` every piece of its text, then ``finish`` once."""

    def __init__(self, form: ReplyFormat, ask: Ask) -> None:
        functions = [tool.get("function", tool) for tool in ask.tools if isinstance(tool, Mapping)]
        schemas = {
            str(function["name"]): function.get("parameters") or {}
            for function in functions
            if isinstance(function, Mapping) and "name" in function
        }
        strict = form.tools is not None and form.tools.strict
        self._reader = Reader()
        self._sink = Sink(schemas, strict=strict, whole=ask.whole, one_call=ask.one_call)
        self._steps: Steps[None] | None = _reply(self._reader, self._sink, form, ask)

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._sink.thinking

    def push(self, text: str) -> Parsed:
        """What another piece of the text brings."""
        if text:
            self._reader.feed(text)
            self._run()
        return self._sink.drain()

    def finish(self, *, cut: bool = False) -> Parsed:
        """What the end of the text brings; `cut`: it was not the model that ended it."""
        self._reader.ended, self._reader.cut = True, cut
        self._run()
        self._sink.content.close()
        return self._sink.drain()

    def _run(self) -> None:
        """Read what is there."""
        try:
            if self._steps is not None:
                next(self._steps)
                return
        except StopIteration:
            pass
        except Exception:  # a parser's own mistake costs the form of a reply, not the reply
            log.exception("The reply's parser failed; the rest of the reply is given as text.")
        self._steps = None
        self._sink.thinking = False
        self._sink.content.add(self._reader.take(len(self._reader.text)))


def _reply(reader: Reader, sink: Sink, form: ReplyFormat, ask: Ask) -> Steps[None]:
    """A whole reply."""
    if form.harmony and ask.forced is None:
        yield from harmony(reader, sink, ask.only_calls)
        return
    mark = ""
    if form.reasoning is not None:
        ends = form.tools.ends_reasoning if form.tools is not None and ask.tools else ()
        mark = yield from _reasoning(reader, sink, form.reasoning, ask.opened, ends)
    if ask.forced is not None:
        yield from _forced(reader, sink, ask.forced)
    elif ask.only_calls and form.tools is not None:
        yield from _calls(reader, sink, form.tools, mark)
        mark = ""
    drops = form.reasoning.drops if form.reasoning is not None else ()
    yield from _content(reader, sink, form.tools if ask.tools else None, drops, mark)


def _reasoning(
    reader: Reader, sink: Sink, form: ReasoningFormat, opened: bool | None, also_ends: tuple[str, ...]
) -> Steps[str]:
    """The reasoning at the beginning, if there is any; the mark of a call that ended it, else ""."""
    reader.keep()
    yield from reader.spaces()
    started = yield from reader.literal(*form.starts)
    before = reader.kept()
    if not (started or opened or (opened is None and form.implicit)):
        sink.content.add(before)
        return ""
    sink.thinking = True
    mark = yield from reader.until(Marks((*form.ends, *also_ends)), sink.reasoning.add)
    sink.thinking = False
    sink.reasoning.seam()
    sink.seam()
    return mark if mark in also_ends else ""


def _content(
    reader: Reader, sink: Sink, form: ToolFormat | None, drops: tuple[str, ...], mark: str | None
) -> Steps[None]:
    """Content with calls between; `mark` has been read already, or is ""."""
    opens: tuple[str, ...] = ()
    if form is not None:
        opens, drops = form.opens, drops + form.drops
        if form.bare and not mark and (yield from _bare(reader, sink, form.bare)):
            yield from _section(reader, sink, form, "")
    marks = Marks((*opens, *drops))
    while mark is not None:
        if mark in drops:
            sink.seam()
            yield from reader.scrap(*opens, *drops)
        elif mark and form is not None:
            yield from _section(reader, sink, form, mark)
        mark = yield from reader.until(marks, sink.content.add)


def _bare(reader: Reader, sink: Sink, chars: str) -> Steps[bool]:
    """Whether the reply begins with one of `chars`."""
    reader.keep()
    char = yield from reader.spaces()
    sink.content.add(reader.kept())
    return bool(char) and char in chars


def _section(reader: Reader, sink: Sink, form: ToolFormat, mark: str, must: bool = False) -> Steps[bool]:
    """What an opening mark introduces; the text itself, and False, when it is no call."""
    reader.keep(mark)
    found = yield from _tried(reader, sink, form.body(reader, sink, mark), must)
    if found:
        sink.seam()
        yield from reader.scrap(*form.opens, *form.drops, *form.closes)
    return found


def _calls(reader: Reader, sink: Sink, form: ToolFormat, mark: str) -> Steps[None]:
    """Calls in the model's own marks from the beginning on; what is left when something else comes."""
    marks = (*form.opens, *form.drops, *form.closes)
    while True:
        reader.keep(mark)
        char = yield from reader.spaces()
        mark = mark or (yield from reader.literal(*marks))
        is_call = mark in form.opens or (not mark and char != "" and char in form.bare)
        before = reader.kept()
        if is_call:
            if not (yield from _section(reader, sink, form, mark, must=True)):
                return
        elif not mark:
            rest = reader.text[reader.at :]
            if reader.ended and any(known.startswith(rest) for known in marks):
                reader.take(len(reader.text))  # cut in the middle of a mark
            elif rest:
                sink.content.add(before)
            return
        mark = ""


def _forced(reader: Reader, sink: Sink, name: str) -> Steps[None]:
    """A reply that is held to a call's form in JSON; where it is not, it is content."""
    yield from reader.spaces()
    body = forced_arguments(name) if name else json_calls()
    reader.keep()
    yield from _tried(reader, sink, body(reader, sink, ""), must=True)


def _tried(reader: Reader, sink: Sink, calls: Steps[None], must: bool = False) -> Steps[bool]:
    """Whether what was kept are calls; where they break before one is given, it is text.

    Where the reply was cut, what there is of the last one is given, and no scrap of it is text; `must`: the
    reply is held to calls, so that it breaks off only where it was cut.
    """
    try:
        yield from calls
    except Broken:
        if reader.ended and (must or (reader.cut and sink.begun)):
            sink.cut()
            reader.take(len(reader.text))
            reader.kept()
            return False
        given = sink.give_up()
        text = reader.kept()
        if not given:
            sink.content.add(text)
        return False
    reader.kept()
    return True
