"""Random texts of marks and scraps for every parser, and texts that repeat one thing.

By hand, for as long as one likes: ``python tests/parsers/parser_fuzz.py COUNT [SEED]``.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator

from parser_replies import ONE_CALL, Reply, loud, tools

from octavo.parsers.detect import reply_format
from octavo.parsers.formats import REASONING_FORMATS, TOOL_FORMATS
from octavo.parsers.parser import Ask, ReplyFormat

OFFERED = tools("add", weather={"type": "object", "properties": {"city": {"type": "string"}}})
SCRAPS = (
    *('{"name": ', '"weather"', '"arguments": ', "{", "}", "[", "]", "(", ")", ",", ";", ":", '"', "'", "\\"),
    *("weather", "add", "city=", "\n", " ", "1e5", "-", "true", "None", "```", "🙂", "\ud800", "<", "|"),
    "\\u00",
)
REPEATED = (
    *("[", "{", '{"a":', "[1,", "{},", "(", "add(", "weather(city=", '"', "'", "\\", '\\"', "\\u", "<", "</"),
    *("<|", "|", " ", "\n", "x", "1", "-", "1e", ",", "a=", "&lt;", "```\n", "🙂", "True,", "\\\\"),
)


def forms() -> list[ReplyFormat]:
    """Every format of calls with every format of reasoning."""
    thoughts = (*REASONING_FORMATS, "none")
    return [reply_format(name, thought, None) for name in (*TOOL_FORMATS, "openai") for thought in thoughts]


def cut(text: str, rng: random.Random) -> list[str]:
    """The text in pieces of any length."""
    pieces = []
    while text:
        size = rng.choice((1, 2, 3, 5, 8, 13, 34))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def fuzz(count: int, seed: int) -> None:
    """Parse `count` texts whole, cut at random and character by character. Raises whatever they raise."""
    rng = random.Random(seed)
    every = forms()
    for number in range(count):
        form = every[number % len(every)]
        words = (*form.marks(), *SCRAPS, *SCRAPS)
        text = "".join(rng.choice(words) for _ in range(rng.randrange(1, 14)))
        opened = rng.choice((None, True, False))
        forced = rng.choice((None, None, None, "", "weather"))
        ask = Ask(
            tools=OFFERED,
            opened=opened,
            whole=rng.random() < 0.5,
            one_call=rng.random() < 0.15,
            forced=forced,
            only_calls=forced is None and rng.random() < 0.2,
        )
        at_limit = rng.random() < 0.3
        whole = Reply(form, ask, [text], at_limit)
        for pieces in (cut(text, rng), list(text)):
            where = form.tool_name, form.reasoning_name, ask, pieces, at_limit
            assert Reply(form, ask, pieces, at_limit).all == whole.all, where


def repeated(name: str) -> Iterator[tuple[str, str]]:
    """(how a text begins, what follows it again and again): alone, and from within a call."""
    call = ONE_CALL[name]
    inside = call.index("Paris")
    for unit in (call, call[: len(call) // 2], *reply_format(name, "none", None).marks(), *REPEATED):
        for begin in ("", call[: len(call) // 4], call[: len(call) // 2], call[:inside]):
            yield begin, unit


if __name__ == "__main__":
    began, number = time.monotonic(), int(sys.argv[1])
    with loud():
        fuzz(number, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{number} texts, {number / (time.monotonic() - began):.0f} a second")
