"""Tokens of log-probabilities as text, for every door that shows them."""

from __future__ import annotations

from octavo.server.hub import Vocabulary
from octavo.types.engine import TokenLogprobs

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def finite(value: float) -> float:
    """`value`, at least LOWEST (NaN too becomes LOWEST)."""
    return value if value > LOWEST else LOWEST


class Speller:
    """The text of tokens in the order in which one choice produces them.

    A token that is only a part of a character has the text "" and no bytes; the token that completes the
    character has all of it.
    """

    def __init__(self, vocabulary: Vocabulary | None, as_ids: bool = False) -> None:
        """`as_ids`, or no vocabulary: every token is spelt ``token_id:N``."""
        self._vocabulary = vocabulary
        self._as_ids = as_ids or vocabulary is None
        self._held = b""

    def chosen(self, token_id: int) -> str:
        """The text of the next token."""
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._held + self._bytes(token_id)
        text = _whole(data)
        if text is None and (len(data) > 4 or _hopeless(data)):
            text = data.decode("utf-8", "replace")
        self._held = b"" if text is not None else data
        return text or ""

    def other(self, token_id: int) -> str:
        """The text that another token would have at the place of the next one; changes nothing."""
        if self._as_ids:
            return f"token_id:{token_id}"
        alone = _whole(self._bytes(token_id))
        if alone is not None:
            return alone
        return _whole(self._held + self._bytes(token_id)) or ""

    def _bytes(self, token_id: int) -> bytes:
        assert self._vocabulary is not None
        data = self._vocabulary.token_bytes(token_id)
        return self._vocabulary.decode([token_id]).encode("utf-8") if data is None else data


def _whole(data: bytes) -> str | None:
    """The text of `data`, None when it is not whole characters."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _hopeless(data: bytes) -> bool:
    """Whether no byte to come can make this valid UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


def best(entry: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    """The `count` most likely (id, logprob) of a position, most likely first; -1 for all there are."""
    seen: dict[int, tuple[int, float]] = {}
    for token, value, rank in zip(entry.ids, entry.values, entry.ranks, strict=True):
        seen.setdefault(token, (rank, value))
    ordered = sorted(seen.items(), key=lambda item: item[1][0])
    return [(token, value) for token, (_, value) in (ordered if count < 0 else ordered[:count])]
