"""Text that arrives in pieces, read by a generator that waits wherever it cannot decide yet.

Every decision here depends on the text alone and never on where it was cut, so that a reply gives the same
answer whole and character by character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A piece of a parser: yields when it needs more text, returns its answer."""

_SPACE = re.compile(r"\s*")
_MAX_SPACES = 4096
"""Behind a longer run of white space nothing belongs to what stood before it."""


class Broken(Exception):
    """The text is not what the format says; what was read of it goes back as text."""


class Marks:
    """A set of strings to look for; at one place the longest wins."""

    def __init__(self, marks: Iterable[str]) -> None:
        self.marks = tuple(sorted({mark for mark in marks if mark}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.marks)) if self.marks else r"(?!)")
        self._beginnings = frozenset(mark[:i] for mark in self.marks for i in range(1, len(mark)))
        self._firsts = frozenset(mark[0] for mark in self.marks)
        self._reach = max((len(mark) for mark in self.marks), default=1) - 1

    def find(self, text: str, at: int, ended: bool, limit: int | None = None) -> tuple[int, str | None]:
        """(place, mark) of the first mark from `at` on; (place, None) when there is none before `place`,
        where the text ends or something begins that may still become a mark.

        `limit`: one that begins more than so many characters behind `at` need not be found.
        """
        end = len(text) if limit is None else at + limit + self._reach + 1
        found = self._pattern.search(text, at, end)
        undecided = len(text) if ended else self._undecided(text, at)
        if found is not None and (ended or found.start() < undecided):
            return found.start(), found.group()
        return undecided, None

    def _undecided(self, text: str, at: int) -> int:
        """Where the tail that may become a mark begins."""
        for start in range(max(at, len(text) - self._reach), len(text)):
            if text[start] in self._firsts and text[start:] in self._beginnings:
                return start
        return len(text)


class Reader:
    """The text that is there and not read yet. Single-threaded; fed from outside, read by one generator."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.cut = False
        """Whether it ended because it grew too long, not because the model had said all."""
        self._kept: list[str] | None = None

    def feed(self, text: str) -> None:
        """Append text that has arrived."""
        self.text = self.text[self.at :] + text
        self.at = 0

    def keep(self, text: str = "") -> None:
        """From now on remember what is read, beginning with `text`."""
        self._kept = [text]

    def kept(self) -> str:
        """What was read since ``keep``; ends the remembering."""
        text = "".join(self._kept or ())
        self._kept = None
        return text

    def take(self, end: int) -> str:
        """Read up to position `end` of the text that is there."""
        text = self.text[self.at : end]
        self.at = end
        if self._kept is not None and text:
            self._kept.append(text)
        return text

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def spaces(self) -> Steps[str]:
        """Skip white space; the next character after it, "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            if found is not None and found.end() > self.at:
                self.take(found.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            yield

    def literal(self, *options: str) -> Steps[str]:
        """Read whichever of `options` comes next, the longest first; "" when none does."""
        for option in sorted(options, key=len, reverse=True):
            while not self.ended and option.startswith(self.text[self.at : self.at + len(option)]):
                if len(self.text) - self.at >= len(option):
                    break
                yield
            if option and self.text.startswith(option, self.at):
                self.take(self.at + len(option))
                return option
        return ""

    def scrap(self, *marks: str) -> Steps[None]:
        """Skip the half of one of `marks` in which a reply was cut."""
        longest = max(map(len, marks), default=0)
        while True:
            found = _SPACE.match(self.text, self.at)
            start = found.end() if found is not None else self.at
            rest = self.text[start : start + longest]
            if start - self.at > _MAX_SPACES:
                return
            if not any(len(rest) < len(mark) and mark.startswith(rest) for mark in marks):
                return
            if self.ended:
                break
            yield
        if self.cut:
            self.take(len(self.text))

    def expect(self, *options: str) -> Steps[str]:
        """Like ``literal``. Raises Broken when none comes."""
        found = yield from self.literal(*options)
        if not found:
            raise Broken
        return found

    def run(self, pattern: re.Pattern[str], limit: int) -> Steps[str]:
        """Read the characters that `pattern`, a repeated class, matches. Raises Broken beyond `limit`."""
        text = ""
        while True:
            if found := pattern.match(self.text, self.at):
                text += self.take(min(found.end(), self.at + limit + 1 - len(text)))
                if len(text) > limit:
                    raise Broken
            if self.at < len(self.text) or self.ended:
                return text
            yield

    def until(self, marks: Marks, show: Callable[[str], object]) -> Steps[str | None]:
        """Read up to and with the first of `marks`, handing what is before it to `show` as it comes.

        Returns the mark, None at the end of the text.
        """
        while True:
            place, mark = marks.find(self.text, self.at, self.ended)
            if place > self.at:
                show(self.take(place))
            if mark is not None:
                self.take(place + len(mark))
                return mark
            if self.ended:
                return None
            yield

    def word(self, marks: Marks, limit: int) -> Steps[tuple[str, str]]:
        """(text, mark) up to and with the first of `marks`, without white space around the text.

        Raises Broken at the end of the text and when there are more than `limit` characters.
        """
        parts: list[str] = []
        size = 0
        while True:
            place, mark = marks.find(self.text, self.at, self.ended, limit - size)
            parts.append(self.take(min(place, self.at + limit - size)))
            size += len(parts[-1])
            if self.at < place or (mark is None and self.ended):
                raise Broken
            if mark is not None:
                self.take(place + len(mark))
                return "".join(parts).strip(), mark
            yield

    def back(self, mark: str) -> None:
        """Unread `mark`, which was read just now and as one piece."""
        self.at -= len(mark)
        if self._kept:
            self._kept.pop()
