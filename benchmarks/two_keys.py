"""Whether the time of an answer tells one key what another one has asked.

    python benchmarks/two_keys.py --pairs 1000

For each pair one key asks a new prompt, and then another key asks the same one and one that nobody has asked,
in either order. The two times are compared by a permutation test: the signs of the differences are drawn anew
ten thousand times. As a control the first key asks its own prompt again. Exit code 0 when the other key sees
nothing (p > 0.05) and the first one does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time

import numpy as np
from soak import Server

WORDS = 300
"""Of a prompt: long enough that its cached half would show."""
SYLLABLES = ("ka", "lo", "mi", "ter", "un", "esh", "or", "bly", "dra", "fin")
DRAWS = 10_000


def prompt(draw: random.Random) -> str:
    """A text that nobody has seen."""
    return " ".join("".join(draw.choices(SYLLABLES, k=2)) for _ in range(WORDS))


class Client:
    """One key on one connection."""

    def __init__(self, port: int, key: str) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def seconds(self, text: str) -> float:
        """From the question to its one token. Raises RuntimeError for any status but 200."""
        body = json.dumps({"prompt": text, "max_tokens": 1, "temperature": 0})
        begun = time.perf_counter()
        self._http.request("POST", "/v1/completions", body, self._headers)
        answer = self._http.getresponse()
        answer.read()
        taken = time.perf_counter() - begun
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}")
        return taken


def differences(first: Client, second: Client, pairs: int, draw: random.Random) -> np.ndarray:
    """Seconds that a new prompt takes `second` beyond one that `first` has asked, for each pair."""
    found = np.empty(pairs)
    for i in range(pairs):
        known, new = prompt(draw), prompt(draw)
        first.seconds(known)
        order = (known, new) if draw.random() < 0.5 else (new, known)
        taken = {text: second.seconds(text) for text in order}
        found[i] = taken[new] - taken[known]
    return found


def chance(found: np.ndarray, seed: int = 0) -> float:
    """How often random signs give a mean as far from 0 as that of `found`; two-sided.

    Each difference is cut to the middle nine tenths, so that a pause of the machine is not the whole mean.
    """
    cut = np.clip(found, *np.quantile(found, (0.05, 0.95)))
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (DRAWS, len(cut)))
    return float((np.abs(signs @ cut) >= abs(cut.sum())).mean())


def main() -> int:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    server = Server("--threads", "1", "--api-key", "one", "two", "--kv-cache-memory-bytes", str(64 << 20))
    try:
        server.wait_ready()
        port, draw = int(server.url.rpartition(":")[2]), random.Random(asked.seed)
        one, two = Client(port, "one"), Client(port, "two")
        differences(one, two, 20, draw)
        other = differences(one, two, asked.pairs, draw)
        same = differences(one, one, max(asked.pairs // 10, 20), draw)
    finally:
        server.end()
    for name, found in (("another key", other), ("the same key", same)):
        print(f"{name}: {len(found)} pairs, median {np.median(found) * 1e6:.0f} us, p = {chance(found):.4f}")
    return 0 if chance(other) > 0.05 and chance(same) < 0.001 else 1


if __name__ == "__main__":
    sys.exit(main())
