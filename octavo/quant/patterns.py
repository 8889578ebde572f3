"""Regular expressions of quantization configs, matched in bounded time.

A checkpoint is someone else's file, and Python's own matcher may try exponentially many ways (`(a+)+$`). Here
every part of a pattern is asked where it may end for all the places at once where it may begin, so that ways
that meet go on as one; and steps are counted. Single characters, classes and anchors are left to `re`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from octavo.errors import UnsupportedModel

LONGEST_PATTERN = 1024
LONGEST_NAME = 512
_DEEPEST = 30
_MOST_TIMES = 1000
_MOST_STEPS = 50_000
"""Of one name; real patterns take some hundreds."""
_QUANTIFIER = re.compile(r"[*+?]|\{(\d{1,9})?(,)?(\d{1,9})?\}")
_ATOM = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|[^0-9a-zA-Z]|[dDwWsSbBAZnrt])"  # escaped
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]"  # one of a class
    r"|[^\\\[()*+?|]"
)
_GROUP = re.compile(r"\((\?:|\?P<\w+>|\?=|\?!|(?!\?))")

Places = int
"""Positions in a name, a bit each."""
_Part = Callable[["_Run", Places], Places]
"""Where a part may end when it begins at one of some places."""


class Pattern:
    """A regular expression: characters, classes, groups, alternatives, lookahead and repetition.

    UnsupportedModel for one that is damaged, too long, or has backward references or lookbehind. `said` says
    where it stands: "The quantization config targets ...".
    """

    def __init__(self, text: str, said: str) -> None:
        try:
            if len(text) > LONGEST_PATTERN:
                raise ValueError(f"{len(text)} characters, at most {LONGEST_PATTERN} are read")
            reader = _Reader(text)
            self._whole = reader.either(0)
            if reader.at < len(text):
                raise ValueError(f"unbalanced parenthesis at {reader.at}")
        except (ValueError, re.error) as error:
            raise UnsupportedModel(f"{said} {text!r:.80}: {error}.") from None

    def matches(self, name: str) -> bool:
        """Whether the pattern fits the beginning of a name, as re.match says; names too long never do."""
        return len(name) <= LONGEST_NAME and bool(_Run(name).ends(self._whole, 1))


class _Run:
    """One name, and where characters and anchors fit in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0
        self._fits: dict[str, tuple[int, int]] = {}

    def ends(self, part: _Part, starts: Places) -> Places:
        if not starts:
            return 0
        self.count(1)
        return part(self, starts)

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise UnsupportedModel(
                f"A pattern of the quantization config takes more than {_MOST_STEPS} steps."
            )

    def fits(self, atom: str) -> tuple[Places, Places]:
        """(where an atom takes a character, where it stands between two)."""
        if atom not in self._fits:
            self.count(len(self.name))
            found = [re.compile(atom).match(self.name, at) for at in range(len(self.name) + 1)]
            takes = sum(1 << m.start() for m in found if m and m.end() > m.start())
            self._fits[atom] = takes, sum(1 << m.start() for m in found if m and m.end() == m.start())
        return self._fits[atom]


class _Reader:
    """Parses a pattern by recursive descent; ValueError where it cannot."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def either(self, depth: int) -> _Part:
        if depth > _DEEPEST:
            raise ValueError(f"groups more than {_DEEPEST} deep")
        ways = [self._sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            ways.append(self._sequence(depth))
        return ways[0] if len(ways) == 1 else _any_of(tuple(ways))

    def _sequence(self, depth: int) -> _Part:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._one(depth)))
        return _in_turn(tuple(parts))

    def _one(self, depth: int) -> _Part:
        if group := _GROUP.match(self.text, self.at):
            self.at = group.end()
            inside = self.either(depth + 1)
            if not self.text.startswith(")", self.at):
                raise ValueError("a parenthesis is not closed")
            self.at += 1
            return _ahead(inside, group[1] == "?=") if group[1] in ("?=", "?!") else inside
        found = _ATOM.match(self.text, self.at)
        if not found:
            raise ValueError(f"{self.text[self.at : self.at + 4]!r} at {self.at} is not supported")
        self.at = found.end()
        return _atom(found[0])

    def _repeated(self, part: _Part) -> _Part:
        found = _QUANTIFIER.match(self.text, self.at)
        if not found or found[0] in ("{}", "{,}"):
            return part
        self.at = found.end()
        if self.text.startswith("?", self.at):  # as few as possible: the same names fit
            self.at += 1
        if found[0] in "*+?":
            return _times(part, int(found[0] == "+"), 1 if found[0] == "?" else None)
        low, comma, high = found.groups()
        least = int(low or 0)
        most = int(high) if high else None if comma else least
        if max(least, most or 0) > _MOST_TIMES or (most is not None and most < least):
            raise ValueError(f"{found[0]} repeats more than {_MOST_TIMES} times or less than it must")
        return _times(part, least, most)


def _atom(text: str) -> _Part:
    re.compile(text)

    def part(run: _Run, starts: Places) -> Places:
        takes, between = run.fits(text)
        return (starts & takes) << 1 | starts & between

    return part


def _in_turn(parts: tuple[_Part, ...]) -> _Part:
    def part(run: _Run, starts: Places) -> Places:
        for one in parts:
            starts = run.ends(one, starts)
        return starts

    return part


def _any_of(parts: tuple[_Part, ...]) -> _Part:
    def part(run: _Run, starts: Places) -> Places:
        ends = 0
        for one in parts:
            ends |= run.ends(one, starts)
        return ends

    return part


def _ahead(inside: _Part, wanted: bool) -> _Part:
    def part(run: _Run, starts: Places) -> Places:
        each = (1 << at for at in range(starts.bit_length()) if starts >> at & 1)
        return sum(place for place in each if bool(run.ends(inside, place)) == wanted)

    return part


def _times(one: _Part, least: int, most: int | None) -> _Part:
    def part(run: _Run, starts: Places) -> Places:
        for _ in range(least):
            starts = run.ends(one, starts)
        found, done = starts, least
        while starts and (most is None or done < most):
            # What was there after fewer times can do as much.
            starts = run.ends(one, starts) & ~found
            found |= starts
            done += 1
        return found

    return part
