"""Tensors that a pooling head reads from elsewhere than the model's own weight files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from octavo.config.pooling import Pooler
from octavo.errors import CheckpointError, ConfigError
from octavo.ops.layouts import Dense
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.dummy import DummyWeights
from octavo.weights.gguf import GgufCheckpoint
from octavo.weights.mapped import Described

_HEADS = ("lm_head.weight", "model.embed_tokens.weight", "embed_tokens.weight")
"""Where the rows of the output matrix stand: its own, or the embedding that it is tied to."""


class Joined:
    """A checkpoint with more tensors, each made when it is asked for."""

    def __init__(self, own: Checkpoint, more: dict[str, tuple[Path, Callable[[], Dense]]]) -> None:
        """`more`: name -> (the file that it comes from, how it is made)."""
        self.folder = own.folder
        self.nbytes = own.nbytes
        self._own = own
        self._more = more

    def names(self) -> tuple[str, ...]:
        return (*self._own.names(), *self._more)

    def get(self, name: str) -> Dense:
        return self._more[name][1]() if name in self._more else self._own.get(name)

    def described(self, name: str) -> Described:
        if name in self._more:
            made = self.get(name)
            return made.dtype, made.shape
        return self._own.described(name)

    def file_of(self, name: str) -> Path:
        return self._more[name][0] if name in self._more else self._own.file_of(name)

    def release(self, name: str) -> None:
        if name not in self._more:
            self._own.release(name)


def with_pooling(
    checkpoint: Checkpoint | GgufCheckpoint | DummyWeights, pooler: Pooler, folder: Path
) -> Checkpoint | GgufCheckpoint | DummyWeights:
    """The checkpoint with sentence-transformers' Dense modules, and with labels made of the output matrix.

    Raises CheckpointError for files that are not there, ConfigError for tokens that are none.
    """
    if isinstance(checkpoint, DummyWeights) or not (pooler.modules or pooler.from_tokens):
        return checkpoint
    if isinstance(checkpoint, GgufCheckpoint):
        raise ConfigError("A GGUF file has no pooling modules.", hint="Use the Hugging Face checkpoint.")
    more: dict[str, tuple[Path, Callable[[], Dense]]] = {}
    for number, module in enumerate(pooler.modules):
        beside = open_checkpoint(folder / module.folder)
        for name in beside.names():
            more[f"sentence_transformers.{number}.{name}"] = (beside.file_of(name), _getter(beside, name))
    if pooler.from_tokens:
        present = set(checkpoint.names())
        head = next((name for name in _HEADS if name in present), None)
        if head is None:
            raise CheckpointError(f"{folder} has no output matrix to make labels of.")
        ids = _token_ids(folder, pooler.from_tokens)
        more["score.weight"] = (checkpoint.file_of(head), _score_maker(checkpoint, head, ids, pooler.two_way))
    return Joined(checkpoint, more)


def _getter(checkpoint: Checkpoint, name: str) -> Callable[[], Dense]:
    return lambda: checkpoint.get(name)


def _score_maker(checkpoint: Checkpoint, head: str, ids: list[int], two_way: bool) -> Callable[[], Dense]:
    def make() -> Dense:
        table = checkpoint.get(head)
        if max(ids) >= table.shape[0]:
            raise CheckpointError(f"Token {max(ids)} is outside the {table.shape[0]} rows of {head}.")
        rows = table.take(np.array(ids, np.int32)).dequantize()
        return Dense(np.ascontiguousarray(rows[1:] - rows[:1] if two_way else rows, np.float32), "float32")

    return make


def _token_ids(folder: Path, tokens: Iterable[str]) -> list[int]:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"classifier_from_token needs {path}, which is not there.")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read as a tokenizer: {str(error)[:300]}.") from None
    found = []
    for token in tokens:
        number = backend.token_to_id(token)
        if number is None:
            raise ConfigError(
                f"classifier_from_token names {token!r:.60}, which is no token of the vocabulary.",
                hint="Name tokens as tokenizer.json spells them.",
            )
        found.append(int(number))
    return found
