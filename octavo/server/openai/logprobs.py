"""Log-probabilities in OpenAI's shapes: which text a token has, and the lists around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.server.hub import Vocabulary
from octavo.server.openai.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
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


def chat_logprobs(entries: Iterable[TokenLogprobs], top: int, speller: Speller) -> ChatLogprobs:
    """`logprobs` of a chat choice: one item per token with its `top` best."""
    content = []
    for entry in entries:
        alternatives = []
        for token, value in best(entry, top):
            text = speller.other(token)
            alternatives.append(TopLogprob(text, finite(value), list(text.encode("utf-8"))))
        text = speller.chosen(entry.ids[0])
        value = finite(entry.values[0])
        content.append(TokenLogprob(text, value, list(text.encode("utf-8")), alternatives))
    return ChatLogprobs(content)


class CompletionLogprobsMaker:
    """`logprobs` of one completion choice; keeps the running text offset across chunks."""

    def __init__(self, vocabulary: Vocabulary | None, top: int, as_ids: bool, offset: int = 0) -> None:
        self._speller = Speller(vocabulary, as_ids)
        self._top = top
        self._offset = offset

    def make(
        self, entries: Sequence[TokenLogprobs | None], first_id: int | None = None
    ) -> CompletionLogprobs:
        """The lists for these positions. An entry of None (a prompt's first token, whose id is `first_id`)
        has a text but no probability."""
        made = CompletionLogprobs([], [], [], [])
        for entry in entries:
            top: dict[str, float] | None = None
            if entry is not None:
                top = {}
                chosen = entry.ids[0]
                rest = [(t, v) for t, v in best(entry, self._top) if t != chosen]
                others = [(self._speller.other(t), v) for t, v in rest]
                text = self._speller.chosen(chosen)
                top[text] = finite(entry.values[0])
                for name, value in others:
                    top.setdefault(name, finite(value))
                made.token_logprobs.append(finite(entry.values[0]))
            else:
                text = self._speller.chosen(first_id) if first_id is not None else ""
                made.token_logprobs.append(None)
            made.tokens.append(text)
            made.top_logprobs.append(top)
            made.text_offset.append(self._offset)
            self._offset += len(text)
        return made


def prompt_logprobs(entries: Sequence[TokenLogprobs | None], vocabulary: Vocabulary | None) -> PromptLogprobs:
    """`prompt_logprobs` of a reply: candidates by token id."""
    made: PromptLogprobs = []
    speller = Speller(vocabulary)
    for entry in entries:
        if entry is None:
            made.append(None)
            continue
        row: dict[str, PromptLogprob] = {}
        for token, value, rank in zip(entry.ids, entry.values, entry.ranks, strict=True):
            row.setdefault(str(token), PromptLogprob(finite(value), rank, speller.other(token)))
        made.append(row)
    return made
