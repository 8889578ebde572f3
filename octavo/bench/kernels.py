"""``octavo bench kernels``: each kernel alone, in the shapes of a model, beside the limits of the same run.

A kernel runs in a plan of its own, over enough different weights (or cached keys) that none of them waits in
a cache from the last run, as in a model. Its time is the plan's own measurement of the op.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo import _native
from octavo.bench import report
from octavo.bench.breakdown import MemoryProbe
from octavo.bench.options import Asked, at_least, engine_config
from octavo.bench.stats import median
from octavo.config import machine
from octavo.errors import ConfigError
from octavo.ops.contract import AttentionSpec, Batch, Limits, Ops, Param, Precision
from octavo.ops.layouts import FLOATS
from octavo.ops.native import NativeRunnable
from octavo.ops.trace import trace
from octavo.weights.dummy import DummyWeights

if TYPE_CHECKING:
    from octavo.config.arch import Arch

_COLD_BYTES = 256 << 20
_MOST_COPIES = 64
_CASE_S = 2.0
"""A case that takes longer is timed three times only."""
_BLOCK = 16
_VOCAB = 16
_HEAD_ROWS = 64
"""The output head never sees more rows in a step: only sampled positions need logits."""
_PEAK_ROUNDS = 20_000
_MULTIPLY = {"float32": 0, "bfloat16": 1, "int8": 2}
"""The kind of multiply-add (`_native.peak_operations`) that products of such activations are made of."""
_DTYPES = {"auto": "bfloat16", "half": "float16", "float": "float32"}


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags."""

    rows: tuple[str, ...] = ("1", "8", "32", "512")
    contexts: tuple[str, ...] = ("512", "2048", "8192")
    num_iters: int = 9
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        at_least("--num-iters", self.num_iters, 1)
        for number in (*whole(self.rows, "--rows"), *whole(self.contexts, "--contexts")):
            at_least("--rows and --contexts", number, 1)


def whole(words: Sequence[str], name: str) -> list[int]:
    """Whole numbers, given as words or with commas."""
    try:
        return [int(part) for word in words for part in word.split(",") if part]
    except ValueError:
        raise ConfigError(f"{name}: {' '.join(words)!r} is not a list of whole numbers.") from None


@dataclass(frozen=True)
class Case:
    """One kernel in one shape."""

    name: str
    op: str
    """How the plan calls it."""
    nbytes: float
    """That must be read: weights, or keys and values."""
    operations: float
    """Multiplications and additions."""
    model: NativeRunnable
    batch: Batch
    copies: int
    """Ops of this kind in the plan."""


class Bench:
    """Makes cases and times them, all with one dtype and one number of threads."""

    def __init__(self, dtype: str, threads: int, iterations: int) -> None:
        self.dtype = dtype
        self.threads = threads
        self.iterations = iterations
        activation = "bfloat16" if dtype == "bfloat16" else "float32"
        self._precision = Precision(activation, dtype)
        self._item = FLOATS[dtype].itemsize
        self._dummy = DummyWeights(dtype)
        self._probe: MemoryProbe | None = None

    def linear(self, out: int, inputs: int, rows: Sequence[int], cold_bytes: int | None = None) -> list[Case]:
        """Each of `rows` rows times a matrix [out, inputs], over matrices of `cold_bytes` together."""
        copies = _copies(out * inputs * self._item, cold_bytes)
        table = Param((_VOCAB, inputs), kind="table", name="table")
        weights = [Param((out, inputs), kind="matrix", name=f"w{at}") for at in range(copies)]

        def model(ops: Ops) -> Any:
            given = ops.inputs()
            x = ops.embedding(given.token_ids, table)
            total = ops.linear(x, weights[0])
            for weight in weights[1:]:
                total = ops.add(total, ops.linear(x, weight))
            return ops.take(total, given.logit_rows)

        bound = self._bind(model, [table, *weights], (), max(rows), 1, max(rows) + 1)
        return [
            Case(
                f"linear {out}x{inputs}, {count} row{'s' * (count > 1)}",
                f"linear {out}x{inputs}",
                out * inputs * self._item,
                2.0 * out * inputs * count,
                bound,
                _batch(1, count, count),
                copies,
            )
            for count in rows
        ]

    def attention(self, spec: AttentionSpec, sequences: int, rows: int, context: int) -> Case:
        """`rows` new tokens of each of `sequences`, which see `context` tokens with themselves."""
        seen = sequences * (rows * (context - rows) + rows * (rows + 1) / 2)
        nbytes = 2.0 * spec.kv_heads * spec.head_dim * self._item * context * sequences
        copies = _copies(int(nbytes), None)
        widths = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim)
        tables = [Param((_VOCAB, widths[at > 0]), kind="table", name=f"t{at}") for at in range(3)]
        specs = [_layer(spec, layer) for layer in range(copies)]

        def model(ops: Ops) -> Any:
            given = ops.inputs()
            q, k, v = (ops.embedding(given.token_ids, table) for table in tables)
            total = ops.attention(q, k, v, specs[0])
            for one in specs[1:]:
                total = ops.add(total, ops.attention(q, k, v, one))
            return ops.take(total, given.logit_rows)

        bound = self._bind(model, tables, specs, sequences * rows, sequences, context)
        kind = f"decode, {sequences} x {context}" if rows == 1 else f"prefill {rows} of {context}"
        return Case(
            f"attention {spec.heads}/{spec.kv_heads}x{spec.head_dim}, {kind}",
            "attention",
            nbytes,
            4.0 * spec.heads * spec.head_dim * seen,
            bound,
            _batch(sequences, rows, context),
            copies,
        )

    def _bind(
        self,
        model: Callable[[Ops], Any],
        params: Sequence[Param],
        specs: Sequence[AttentionSpec],
        tokens: int,
        sequences: int,
        context: int,
    ) -> NativeRunnable:
        limits = Limits(tokens, sequences, sequences, _BLOCK, context)
        first = {param.shape: param for param in reversed(params)}
        made = {shape: self._dummy.make(param) for shape, param in first.items()}
        tensors = ((param, made[param.shape]) for param in params)
        graph = trace(model)
        bound = NativeRunnable(graph, specs, tensors, self._precision, limits, threads=self.threads)
        bound.allocate_cache(sequences * -(-context // _BLOCK))
        return bound

    def probe(self, model: NativeRunnable) -> MemoryProbe:
        """The one reader of memory, made with the first model's threads."""
        if self._probe is None:
            self._probe = MemoryProbe(model, _COLD_BYTES)
        return self._probe

    def run(self, case: Case) -> dict[str, Any]:
        """Time one case, each run beside a read of memory with the same threads."""
        probe = self.probe(case.model)
        case.model.forward(case.batch)
        seconds: list[float] = []
        fractions: list[float] = []
        begun = time.perf_counter()
        while len(seconds) < self.iterations and not (len(seconds) >= 3 and _late(begun)):
            rate = probe.nbytes / probe.seconds()
            case.model.plan.set_profiling(True)
            case.model.forward(case.batch)
            times = [took for name, took in case.model.plan.profile() if name == case.op]
            seconds.append(sum(times) / case.copies)
            fractions.append(case.nbytes / seconds[-1] / rate)
        took = median(seconds)
        return {
            "kernel": case.name,
            "seconds": took,
            "bytes_per_s": case.nbytes / took,
            "ops_per_s": case.operations / took,
            "fraction_of_read_limit": median(fractions),
        }


def _late(begun_s: float) -> bool:
    return time.perf_counter() - begun_s > _CASE_S


def _copies(nbytes: int, cold_bytes: int | None) -> int:
    """How many make up `cold_bytes` (None: the usual), at most _MOST_COPIES."""
    return max(1, min(-(-(_COLD_BYTES if cold_bytes is None else cold_bytes) // nbytes), _MOST_COPIES))


def _layer(spec: AttentionSpec, layer: int) -> AttentionSpec:
    from dataclasses import replace

    return replace(spec, layer=layer)


def _batch(sequences: int, rows: int, context: int) -> Batch:
    """`rows` tokens for each sequence, the last of `context`; blocks lie in order."""
    tokens = sequences * rows
    positions = np.tile(np.arange(context - rows, context, dtype=np.int32), sequences)
    blocks = -(-context // _BLOCK)
    return Batch(
        token_ids=np.arange(tokens, dtype=np.int32) % _VOCAB,
        positions=positions,
        rope_lens=positions + 1,
        seq_starts=np.arange(0, tokens + 1, rows, dtype=np.int32),
        context_lens=np.full(sequences, context, np.int32),
        block_tables=np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks),
        logit_rows=np.arange(rows - 1, tokens, rows, dtype=np.int32),
    )


def run(asked: Asked) -> dict[str, Any]:
    """Time every matrix of the model and its attention; the figures as the JSON holds them."""
    options = Options(**asked.own)
    config = engine_config(asked, {})
    arch = _arch(config.model, config.hf_overrides)
    dtype = _DTYPES.get(config.dtype, config.dtype)
    bench = Bench(dtype, config.threads or machine.cpu_count(), options.num_iters)
    shapes, spec = shapes_of(arch)
    kernels = []
    for out, inputs in shapes:
        rows = [n for n in whole(options.rows, "--rows") if n <= _HEAD_ROWS or out != arch.vocab]
        kernels += [bench.run(case) for case in (bench.linear(out, inputs, rows) if rows else ())]
    for context in whole(options.contexts, "--contexts"):
        kernels.append(bench.run(bench.attention(spec, 1, 1, context)))
    prompt = whole(options.contexts, "--contexts")[0]
    kernels.append(bench.run(bench.attention(spec, 1, prompt, prompt)))
    return {
        "date": report.stamp(),
        "model": options.dummy or config.model or "pocket",
        "dtype": dtype,
        "threads": bench.threads,
        **limits(bench),
        "kernels": kernels,
        "machine": report.this_machine(),
    }


def _arch(model: str | None, overrides: dict[str, Any]) -> Arch:
    from octavo.config.arch import read_arch
    from octavo.launch import POCKET
    from octavo.pipeline.vocab import read_json
    from octavo.weights.hub import TEXT_FILES, resolve_model

    folder: Path = POCKET if model is None else resolve_model(model, allow_patterns=TEXT_FILES)
    raw = read_json(folder / "config.json")
    if not raw:
        raise ConfigError(f"There is no config.json in {folder}.", hint="Name the folder of a checkpoint.")
    return read_arch(raw, overrides)


def shapes_of(arch: Arch) -> tuple[list[tuple[int, int]], AttentionSpec]:
    """The different matrices of a model in the order of its step, [out, in], and its first attention."""
    from octavo.build.declare import declare

    decoder = declare(arch)
    nodes = trace(decoder).nodes
    shapes = [node.weight.shape for node in nodes if node.op == "linear" and node.weight is not None]
    return [(out, inputs) for out, inputs in dict.fromkeys(shapes)], decoder.attention_specs()[0]


def limits(bench: Bench) -> dict[str, Any]:
    """What memory gives with these threads, and what their multiply-adds come to in registers."""
    (case,) = bench.linear(16, 16, [1], cold_bytes=1)
    probe, model = bench.probe(case.model), case.model
    reads = [probe.seconds() for _ in range(bench.iterations)]
    peaks = [peak(model, bench.dtype) for _ in range(bench.iterations)]
    return {"read_bytes_per_s": probe.nbytes / median(reads), "peak_ops_per_s": median(peaks)}


def peak(model: NativeRunnable, kind: str) -> float:
    """Operations per second of the model's threads in registers, for float32, bfloat16 or int8 numbers."""
    return _native.peak_operations(model.pool, model.isa, _MULTIPLY.get(kind, 0), _PEAK_ROUNDS)


def text(result: dict[str, Any]) -> str:
    """The report for people."""
    best = result["peak_ops_per_s"]
    rows = [
        (
            kernel["kernel"],
            report.number(1e6 * kernel["seconds"], 1),
            report.number(kernel["bytes_per_s"] / 1e9, 1),
            f"{kernel['fraction_of_read_limit']:.0%}",
            report.number(kernel["ops_per_s"] / 1e9, 1),
            f"{kernel['ops_per_s'] / best:.0%}",
        )
        for kernel in result["kernels"]
    ]
    head = (
        f"{result['dtype']}, {result['threads']} threads",
        "us",
        "GB/s",
        "of reading",
        "Gop/s",
        "of peak",
    )
    lines = [
        report.table(head, rows),
        "",
        report.pairs(
            [
                ("Memory read limit", f"{report.number(result['read_bytes_per_s'] / 1e9, 1)} GB/s"),
                ("Multiply-add peak", f"{report.number(best / 1e9, 1)} Gop/s"),
            ]
        ),
    ]
    return "\n".join(lines)
