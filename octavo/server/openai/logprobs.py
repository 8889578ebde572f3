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
from octavo.server.spelling import Speller as Speller
from octavo.server.spelling import best, finite
from octavo.types.engine import TokenLogprobs


def chat_logprobs(entries: Iterable[TokenLogprobs], top: int, speller: Speller) -> ChatLogprobs:
    """`logprobs` of a chat choice: one item per token with its `top` best."""
    content = []
    for entry in entries:
        alternatives = []
        for token, value in best(entry, top):
            text = speller.other(token)
            alternatives.append(TopLogprob(text, finite(value), tuple(text.encode("utf-8"))))
        text = speller.chosen(entry.ids[0])
        value = finite(entry.values[0])
        content.append(TokenLogprob(text, value, tuple(text.encode("utf-8")), alternatives))
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
