"""What the requests of a benchmark are: random ids, prompts from a file, or a trace of real arrivals."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError

_FILE_NAMES = ("file", "custom", "sharegpt", "json", "csv", "text")
_COMMON_IDS = (3, 500)
"""Every vocabulary has these ids, and few of them are special."""


@dataclass(frozen=True)
class Sample:
    """One request: a text or token ids, and how long its answer is."""

    prompt: str | tuple[int, ...]
    output_len: int
    arrival_s: float | None = None
    """Of a trace: seconds after its first request."""


@dataclass(frozen=True)
class Wanted:
    """Which data is asked for. None for a length: what the data says, then 128."""

    name: str = "random"
    path: str | None = None
    count: int = 64
    input_len: int | None = None
    output_len: int | None = None
    range_ratio: float = 0.0
    prefix_len: int = 0
    seed: int = 0
    vocab: int | None = None
    """None: unknown, and only ids are drawn that every vocabulary has."""


def samples(wanted: Wanted) -> list[Sample]:
    """The requests, in order. ConfigError for a data set that is not there or cannot be read."""
    if wanted.name == "random":
        return _random(wanted)
    if wanted.path is None:
        raise ConfigError(f"--dataset-name {wanted.name} needs --dataset-path.")
    path = Path(wanted.path).expanduser()
    try:
        if wanted.name == "trace":
            found = list(_first(_trace(path, wanted), wanted.count))
        elif wanted.name in _FILE_NAMES:
            found = list(_first(_prompts(path, wanted), wanted.count))
        else:
            raise ConfigError(
                f"--dataset-name: there is no {wanted.name!r}.", hint="There are: random, file, trace."
            )
    except OSError as error:
        raise ConfigError(f"--dataset-path: cannot read {path}: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"--dataset-path: {path} cannot be read as a {wanted.name} ({type(error).__name__}: {error}).",
            hint="docs/benchmarks.md shows the formats.",
        ) from None
    if not found:
        raise ConfigError(f"--dataset-path: there is no request in {path}.")
    return found


def _first(items: Iterable[Sample], count: int) -> Iterator[Sample]:
    for _, item in zip(range(count), items, strict=False):
        yield item


# ---- random ---------------------------------------------------------------------------------------------


def _random(wanted: Wanted) -> list[Sample]:
    """Lengths uniform in length * (1 - ratio) .. length * (1 + ratio), as in vLLM."""
    if not 0.0 <= wanted.range_ratio < 1.0:
        raise ConfigError(f"--random-range-ratio is {wanted.range_ratio:g}; give 0 up to 1.")
    rng = random.Random(wanted.seed)
    draw = ids_drawer(rng, wanted.vocab)
    prefix = draw(wanted.prefix_len)
    found = []
    for _ in range(wanted.count):
        input_len = _around(128 if wanted.input_len is None else wanted.input_len, wanted.range_ratio, rng)
        output_len = _around(128 if wanted.output_len is None else wanted.output_len, wanted.range_ratio, rng)
        found.append(Sample(prefix + draw(input_len), output_len))
    return found


def _around(length: int, ratio: float, rng: random.Random) -> int:
    return max(1, rng.randint(int(length * (1 - ratio)), int(length * (1 + ratio))))


def ids_drawer(rng: random.Random, vocab: int | None) -> Callable[[int], tuple[int, ...]]:
    """A function that draws that many token ids."""
    low, high = (0, vocab) if vocab is not None else _COMMON_IDS
    return lambda count: tuple(rng.randrange(low, high) for _ in range(count))


# ---- traces ---------------------------------------------------------------------------------------------


def _trace(path: Path, wanted: Wanted) -> Iterator[Sample]:
    """Arrivals and lengths. JSONL: Mooncake's timestamp (ms), input_length, output_length, hash_ids (one for
    each block of 512 prompt tokens, equal where those are). CSV: arrival_s, prompt_tokens, output_tokens, or
    Azure's TIMESTAMP, ContextTokens, GeneratedTokens. --input-len and --output-len bound the lengths.
    """
    draw = ids_drawer(random.Random(wanted.seed), wanted.vocab)
    blocks: dict[int, tuple[int, ...]] = {}
    first: float | None = None
    with path.open(encoding="utf-8", newline="") as file:
        rows = map(json.loads, filter(str.strip, file)) if path.suffix == ".jsonl" else csv.DictReader(file)
        for row in rows:
            arrival, input_len, output_len = _trace_row(row)
            first = arrival if first is None else first
            prompt: tuple[int, ...] = ()
            for block in row.get("hash_ids") or ():
                prompt += blocks.setdefault(int(block), draw(512))
            prompt = (prompt + draw(max(input_len - len(prompt), 0)))[:input_len]
            bound = len(prompt) if wanted.input_len is None else wanted.input_len
            most = output_len if wanted.output_len is None else wanted.output_len
            yield Sample(prompt[:bound], min(output_len, most), arrival - first)


def _trace_row(row: dict[str, Any]) -> tuple[float, int, int]:
    if "timestamp" in row:
        arrival, names = float(row["timestamp"]) / 1000.0, ("input_length", "output_length")
    elif "arrival_s" in row:
        arrival, names = float(row["arrival_s"]), ("prompt_tokens", "output_tokens")
    else:
        from datetime import datetime

        arrival = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        names = ("ContextTokens", "GeneratedTokens")
    return arrival, max(int(row[names[0]]), 1), max(int(row[names[1]]), 1)


# ---- files ----------------------------------------------------------------------------------------------


def _prompts(path: Path, wanted: Wanted) -> Iterator[Sample]:
    """Prompts of a file: JSONL objects with "prompt" (vLLM's custom data set; "output_len" or "output_tokens"
    beside it), a JSON list in ShareGPT's shape ("conversations" of "from" and "value"), a CSV with a column
    "prompt", or a text with one prompt a line.
    """
    for row in _rows(path):
        prompt, own_len = _prompt(row)
        if prompt:
            chosen = wanted.output_len if wanted.output_len is not None else own_len
            yield Sample(prompt, 128 if chosen is None else chosen)


def _rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            yield from map(json.loads, filter(str.strip, file))
        elif path.suffix == ".json":
            yield from json.load(file)
        elif path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from ({"prompt": line.strip()} for line in file)


def _prompt(row: dict[str, Any]) -> tuple[str, int | None]:
    if "conversations" in row:
        turns = row["conversations"]
        return (turns[0]["value"], None) if len(turns) >= 2 else ("", None)
    own = row.get("output_len") or row.get("output_tokens") or row.get("expected_output_len")
    return str(row["prompt"]), None if own is None else int(own)
