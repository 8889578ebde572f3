"""Log-probabilities as scripts see them: a `Logprob` for each token, in dicts or in `FlatLogprobs`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, overload


@dataclass(slots=True)
class Logprob:
    """One candidate at one position.

    `logprob` is a natural logarithm; `rank` is 1 for the most likely token of the vocabulary;
    `decoded_token` is the token's text in its context ("" while a character is incomplete).
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobDict = dict[int, Logprob]
"""Token id to its Logprob; the chosen token comes first, then the best in descending order."""


@dataclass
class FlatLogprobs(MutableSequence[TokenLogprobDict | None]):
    """The candidates of all positions in a few long lists; reads as a list of dicts, made on demand.

    Position i has the entries start_indices[i] .. end_indices[i]; none: its dict is empty. Positions can be
    appended but not replaced.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, value: TokenLogprobDict | None) -> None:
        """One more position; None for one without candidates (a prompt's first)."""
        self.append_fast(
            list(value or ()),
            [one.logprob for one in (value or {}).values()],
            [one.rank for one in (value or {}).values()],
            [one.decoded_token for one in (value or {}).values()],
        )

    def append_fast(
        self,
        token_ids: Iterable[int],
        logprobs: Iterable[float],
        ranks: Iterable[int | None],
        decoded_tokens: Iterable[str | None],
    ) -> None:
        """The same from four columns of equal length."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids.extend(token_ids)
        self.logprobs.extend(logprobs)
        self.ranks.extend(ranks)
        self.decoded_tokens.extend(decoded_tokens)
        self.end_indices.append(len(self.token_ids))

    def extend(self, values: Iterable[TokenLogprobDict | None]) -> None:
        """More positions, in dicts or out of another one of these."""
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobDict: ...

    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...

    def __getitem__(self, index: int | slice) -> TokenLogprobDict | FlatLogprobs:
        """A position's dict, or several positions as a FlatLogprobs of their own."""
        if isinstance(index, slice):
            cut = FlatLogprobs()
            for begin, end in zip(self.start_indices[index], self.end_indices[index], strict=True):
                cut.append_fast(
                    self.token_ids[begin:end],
                    self.logprobs[begin:end],
                    self.ranks[begin:end],
                    self.decoded_tokens[begin:end],
                )
            return cut
        return {
            self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i])
            for i in range(self.start_indices[index], self.end_indices[index])
        }

    def __iter__(self) -> Iterator[TokenLogprobDict]:
        return (self[index] for index in range(len(self)))

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        """Refused."""
        raise TypeError("FlatLogprobs cannot be changed, only appended to.")

    def __delitem__(self, index: Any) -> NoReturn:
        """Refused."""
        raise TypeError("FlatLogprobs cannot be changed, only appended to.")

    def insert(self, index: int, value: TokenLogprobDict | None) -> NoReturn:
        """Refused."""
        raise TypeError("FlatLogprobs cannot be changed, only appended to.")


Logprobs = list[TokenLogprobDict] | FlatLogprobs
PromptLogprobs = list[TokenLogprobDict | None] | FlatLogprobs
