"""gpt-oss's format: messages with a header (who to, which channel) and a body.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>
"""

from __future__ import annotations

import re

from octavo.parsers.json_text import json_value
from octavo.parsers.reader import Broken, Marks, Reader, Steps
from octavo.parsers.sink import Sink

MARKS = (
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|constrain|>",
)
_MESSAGE = Marks(("<|message|>",))
_END = Marks(("<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|channel|>"))
_TO = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."
_MAX_HEADER = 512
_BETWEEN = "\n\n"
"""Between two messages of one channel; white space at a seam, so that nothing of it stands alone."""


def harmony(reader: Reader, sink: Sink, must: bool = False) -> Steps[None]:
    """The whole reply: analysis is reasoning, messages to functions are calls, the rest is content.

    `must`: the reply is held to a call, of which no scrap is content where it was cut.
    """
    mark: str | None = ""
    while mark is not None:
        reader.keep(mark if mark == "<|channel|>" else "")
        try:
            header = yield from _header(reader, mark)
        except Broken:
            if must and reader.ended:
                reader.take(len(reader.text))
                return
            sink.content.add(reader.kept())
            mark = yield from reader.until(_END, sink.content.add)
            continue
        recipient = (_TO.findall(header) or ("",))[-1]
        channel = (_CHANNEL.findall(header) or ("final",))[-1]
        if recipient.startswith(_FUNCTIONS):
            mark = yield from _call(reader, sink, recipient.removeprefix(_FUNCTIONS), must)
        elif channel == "analysis" or recipient not in ("", "assistant", "user"):
            # A tool that nobody offered: what the model did in its head.
            mark = yield from _reasoning(reader, sink)
        else:
            sink.seam()
            sink.content.add(_BETWEEN)
            mark = yield from reader.until(_END, sink.content.add)
            sink.seam()
        if mark is not None and (yield from reader.spaces()) == "":
            return


def _header(reader: Reader, mark: str) -> Steps[str]:
    """A message's header; `mark` ended the message before. Raises Broken where none begins."""
    begun = mark
    if mark != "<|channel|>":
        yield from reader.spaces()
        begun = yield from reader.expect("<|", "to=", "assistant")
    header, _ = yield from reader.word(_MESSAGE, _MAX_HEADER)
    return begun + header


def _reasoning(reader: Reader, sink: Sink) -> Steps[str | None]:
    """A message that is not for the user; the mark that ended it."""
    sink.thinking = True
    sink.reasoning.add(_BETWEEN)
    mark = yield from reader.until(_END, sink.reasoning.add)
    sink.thinking = False
    sink.reasoning.seam()
    sink.seam()
    return mark


def _call(reader: Reader, sink: Sink, name: str, must: bool) -> Steps[str | None]:
    """A call's arguments and the mark behind them; arguments that are no object come back as text."""
    reader.keep()
    try:
        sink.call(name)
        if (yield from reader.spaces()) != "{":
            raise Broken
        yield from json_value(reader, sink.arguments)
        sink.end_call()
    except Broken:
        if reader.ended and (must or (reader.cut and sink.begun)):
            sink.cut()
            reader.take(len(reader.text))
        elif not sink.give_up():
            sink.content.add(reader.kept())
        return (yield from reader.until(_END, sink.content.add))
    return (yield from reader.until(_END, lambda _: None))
