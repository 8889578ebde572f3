"""Batches as a runner makes them, and the smallest thing that drives a bound model with them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Batch, Runnable

BLOCK_SIZE = 16
BLOCKS = 40


@dataclass
class Sequence:
    """A prompt and what was generated, `done` of it computed; its blocks lie scattered."""

    tokens: list[int]
    prompt: int
    table: list[int]
    done: int = 0


@dataclass
class Session:
    """A bound model with a cache: starts sequences and computes parts of them."""

    model: Runnable
    free: list[int] = field(default_factory=lambda: random.Random(5).sample(range(BLOCKS), BLOCKS))

    def __post_init__(self) -> None:
        self.model.allocate_cache(BLOCKS)

    def start(self, prompt: list[int]) -> Sequence:
        return Sequence(list(prompt), len(prompt), [])

    def step(self, work: list[tuple[Sequence, int]], every_row: bool = False) -> NDArray[np.float32]:
        """Compute the next `count` tokens of each sequence; logits of the last of each, or of every token."""
        for sequence, count in work:
            while len(sequence.table) * BLOCK_SIZE < sequence.done + count:
                sequence.table.append(self.free.pop())
        batch = make_batch(work, every_row)
        for sequence, count in work:
            sequence.done += count
        return np.array(self.model.forward(batch))


def make_batch(work: list[tuple[Sequence, int]], every_row: bool = False) -> Batch:
    """The arrays of a step that computes `count` tokens of each sequence from where it stands."""
    spans = [(s, np.arange(s.done, s.done + n, dtype=np.int32)) for s, n in work]
    positions = np.concatenate([p for _, p in spans])
    starts = np.cumsum([0] + [n for _, n in work]).astype(np.int32)
    tables = np.zeros((len(work), max(len(s.table) for s, _ in work)), np.int32)
    for row, (sequence, _) in zip(tables, work, strict=True):
        row[: len(sequence.table)] = sequence.table
    rows = np.arange(starts[-1], dtype=np.int32) if every_row else starts[1:] - 1
    return Batch(
        token_ids=np.array([t for s, p in spans for t in s.tokens[p[0] : p[-1] + 1]], np.int32),
        positions=positions,
        rope_lens=np.concatenate([np.maximum(p + 1, s.prompt) for s, p in spans]).astype(np.int32),
        seq_starts=starts,
        context_lens=np.array([s.done + n for s, n in work], np.int32),
        block_tables=tables,
        logit_rows=np.ascontiguousarray(rows, np.int32),
    )


@dataclass(frozen=True)
class Answer:
    """What one prompt got: the tokens, and the logits [steps, vocab] that each was chosen from."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]


def greedy(model: Runnable, prompt: list[int], steps: int, chunk: int = 1 << 20) -> Answer:
    """`steps` most likely tokens after one prompt, which is computed in chunks of `chunk`."""
    session = Session(model)
    sequence = session.start(prompt)
    logits: list[NDArray[np.float32]] = []
    while len(logits) < steps:
        last = session.step([(sequence, min(chunk, len(sequence.tokens) - sequence.done))])
        if sequence.done == len(sequence.tokens):
            logits.append(last[0])
            sequence.tokens.append(int(last[0].argmax()))
    return Answer(tuple(sequence.tokens[len(prompt) :]), np.stack(logits))


def greedy_together(model: Runnable, prompts: list[list[int]], steps: int) -> list[Answer]:
    """The same for several prompts in shared steps; prompt i joins at step i, so that steps are mixed."""
    session = Session(model)
    sequences = [session.start(prompt) for prompt in prompts]
    logits: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    now = 0
    while any(len(rows) < steps for rows in logits):
        running = [i for i in range(len(prompts)) if i <= now and len(logits[i]) < steps]
        rows = session.step([(sequences[i], len(sequences[i].tokens) - sequences[i].done) for i in running])
        for i, row in zip(running, rows, strict=True):
            logits[i].append(row)
            sequences[i].tokens.append(int(row.argmax()))
        now += 1
    return [
        Answer(tuple(s.tokens[s.prompt :]), np.stack(rows)) for s, rows in zip(sequences, logits, strict=True)
    ]
