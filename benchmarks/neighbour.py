"""Decoding beside a busy process: every thread that Octavo may use against one thread, in turns.

    python benchmarks/neighbour.py --dummy qwen2.5-0.5b --quantization int4 --rounds 10 --seconds 1.5

The neighbour is a process that counts, without a place of its own and on each of the first two cores
(Linux). A turn is `--seconds` of decode steps of one sequence; a round is a turn with one thread and one
with all of them, which starts with nothing known of the neighbour. Printed: medians, and the ratio of
speeds (above 1: all threads are faster) with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from octavo import launch
from octavo.bench.shapes import dummy_folder
from octavo.config import machine
from octavo.config.engine import EngineConfig
from octavo.ops.contract import Batch
from octavo.ops.native import NativeRunnable

CONTEXT = 128
COUNT = """
import os, sys
if sys.argv[1] != "-1":
    os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""


@contextmanager
def neighbour(cpu: int | None) -> Iterator[None]:
    """A process that counts on `cpu`; -1: anywhere; None: no process."""
    if cpu is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-S", "-c", COUNT, str(cpu)]) as process:
        try:
            time.sleep(0.1)
            yield
        finally:
            process.kill()


def decode_batch(block_size: int) -> Batch:
    """One token behind CONTEXT others."""
    numbers = [
        np.array(values, np.int32) for values in ([5], [CONTEXT], [CONTEXT + 1], [0, 1], [CONTEXT + 1])
    ]
    table = np.arange(-(-(CONTEXT + 1) // block_size), dtype=np.int32)[None]
    return Batch(*numbers, table, np.zeros(1, np.int32))


def turn(model: NativeRunnable, batch: Batch, threads: int, seconds: float) -> float:
    """Seconds a step."""
    model.plan.set_threads(threads, threads)
    model.forward(batch)
    steps, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        model.forward(batch)
        steps += 1
    return taken / steps


def measure(model: NativeRunnable, options: argparse.Namespace) -> list[dict[str, Any]]:
    batch = decode_batch(model.limits.block_size)
    places: dict[str, int | None] = {"no neighbour": None, "anywhere": -1, "on core 0": 0, "on core 1": 1}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
    for _ in range(options.rounds):
        for name, cpu in places.items():
            with neighbour(cpu):
                times[name].append(
                    (
                        turn(model, batch, 1, options.seconds),
                        turn(model, batch, model.pool.size, options.seconds),
                    )
                )
    return [summary(name, pairs) for name, pairs in times.items()]


def summary(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [one / every for one, every in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "neighbour": name,
        "one_thread_ms": 1e3 * statistics.median(one for one, _ in pairs),
        "all_threads_ms": 1e3 * statistics.median(every for _, every in pairs),
        "ratio": middle,
        "quartiles": [low, high],
        "rounds": len(pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dummy", default="qwen2.5-0.5b")
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json")
    options = parser.parse_args()
    if not hasattr(os, "sched_setaffinity") or options.rounds < 2 or machine.cpu_count() < 2:
        parser.error("needs Linux, two cores and two rounds")
    config = EngineConfig(
        model=str(dummy_folder(options.dummy)),
        load_format="dummy",
        quantization=options.quantization,
        max_model_len=256,
        max_num_seqs=1,
        skip_tokenizer_init=True,
        quiet=True,
    )
    model = launch.build(config).model
    assert isinstance(model, NativeRunnable)
    found = measure(model, options)
    for row in found:
        low, high = row["quartiles"]
        print(
            f"{row['neighbour']:13} 1 thread {row['one_thread_ms']:6.2f} ms a step, "
            f"{model.pool.size} threads {row['all_threads_ms']:6.2f} ms, "
            f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
