"""What ``octavo bench kernels`` times: single kernels in the shapes of a model, each in a plan of its own.

Over enough different weights (or cached keys) that none of them waits in a cache from the last run, as in a
model. A kernel's time is the plan's own measurement of its op.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo import _native
from octavo.bench.breakdown import MemoryProbe
from octavo.bench.formats import FORMATS, arithmetic
from octavo.bench.stats import median
from octavo.ops.contract import AttentionSpec, Batch, Limits, Ops, Param, Precision, Rope
from octavo.ops.layouts import FLOATS, Layout
from octavo.ops.native import NativeRunnable
from octavo.ops.trace import trace
from octavo.runner.sampling import Sampler
from octavo.types.engine import SamplingSpec
from octavo.weights.dummy import DummyWeights

COLD_BYTES = 256 << 20
_MOST_COPIES = 64
_CASE_S = 2.0
"""A case that takes longer is timed three times only."""
_BLOCK = 16
_VOCAB = 16
_FEW_ROWS = 64
"""Up to so many rows a product waits for memory; beyond, one matrix says as much as many."""
_PEAK_ROUNDS = 20_000
_MULTIPLY = {"float32": 0, "bfloat16": 1, "int8": 2}
"""The kind of multiply-add (`_native.peak_operations`) that products of such numbers are made of."""


@dataclass(frozen=True)
class Case:
    """One kernel in one shape."""

    name: str
    format: str
    """Of the numbers it reads."""
    nbytes: float
    """That must be read: weights, keys and values, or what stands between; written bytes where it writes."""
    operations: float
    """Multiplications and additions; 0 where they do not count."""
    arithmetic: str
    """What they are made of: float32, bfloat16 or int8."""
    seconds: Callable[[], float]
    """Runs it once."""


def peak(model: NativeRunnable, kind: str) -> float:
    """Operations per second of the model's threads in registers, for float32, bfloat16 or int8 numbers."""
    return _native.peak_operations(model.pool, model.isa, _MULTIPLY[kind], _PEAK_ROUNDS)


class Bench:
    """Makes cases and times them, all with one dtype and one number of threads."""

    def __init__(self, dtype: str, threads: int, iterations: int, seen: str = "int8") -> None:
        """`seen`: what quantized matrices see of their input (Precision.quantized)."""
        self.dtype = dtype
        self.threads = threads
        self.iterations = iterations
        activation = "bfloat16" if dtype == "bfloat16" else "float32"
        self.precision = Precision(activation, dtype, seen)
        self._item = FLOATS[dtype].itemsize
        self._dummy = DummyWeights(dtype)
        self._model: NativeRunnable | None = None
        self._probe: MemoryProbe | None = None

    # ---- the cases ----------------------------------------------------------------------------------------

    def linear(
        self, out: int, inputs: int, rows: Sequence[int], cold_bytes: int | None = None, kind: str = ""
    ) -> list[Case]:
        """Each of `rows` rows times a matrix [out, inputs] of format `kind` (empty: the dtype), over matrices
        of `cold_bytes` together."""
        kind = kind or self.dtype
        layout = FORMATS[kind](np.random.default_rng(0), out, inputs)
        cold = COLD_BYTES if cold_bytes is None else cold_bytes
        few, many = ([n for n in rows if (n <= _FEW_ROWS) == small] for small in (True, False))
        cases = self._products(layout, kind, few, cold) if few else []
        return [*cases, *(self._products(layout, kind, many, 1) if many else ())]

    def _products(self, layout: Layout, kind: str, rows: Sequence[int], cold_bytes: int) -> list[Case]:
        out, inputs = layout.shape
        copies = _copies(layout.nbytes, cold_bytes)
        table = Param((_VOCAB, inputs), kind="table", name="table")
        weights = [Param((out, inputs), kind="matrix", name=f"w{at}") for at in range(copies)]

        def model(ops: Ops) -> Any:
            given = ops.inputs()
            x = ops.embedding(given.token_ids, table)
            total = ops.linear(x, weights[0])
            for weight in weights[1:]:
                total = ops.add(total, ops.linear(x, weight))
            return ops.take(total, given.logit_rows)

        bound = self._bind(model, [table, *weights], (), max(rows), 1, max(rows) + 1, layout)
        return [
            Case(
                f"linear {out}x{inputs}, {count} row{'s' * (count > 1)}",
                kind,
                bound.step_bytes / copies,
                2.0 * out * inputs * count,
                arithmetic(layout, self.precision),
                _timed(bound, _batch(1, count, count), "linear"),
            )
            for count in rows
        ]

    def attention(self, spec: AttentionSpec, sequences: int, rows: int, context: int) -> Case:
        """`rows` new tokens of each of `sequences`, which see `context` tokens with themselves."""
        seen = sequences * (rows * (context - rows) + rows * (rows + 1) / 2)
        nbytes = 2.0 * spec.kv_heads * spec.head_dim * self._item * context * sequences
        copies = _copies(int(nbytes), COLD_BYTES if rows <= _FEW_ROWS else 1)
        widths = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim)
        tables = [Param((_VOCAB, widths[at > 0]), kind="table", name=f"t{at}") for at in range(3)]
        specs = [replace(spec, layer=layer) for layer in range(copies)]

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
            self.dtype,
            nbytes,
            4.0 * spec.heads * spec.head_dim * seen,
            "bfloat16" if self.precision.rounds_attention else "float32",
            _timed(bound, _batch(sequences, rows, context), "attention"),
        )

    def between(self, hidden: int, ffn: int, spec: AttentionSpec, rows: int) -> list[Case]:
        """The ops between the matrices, over `rows` rows; what they touch comes from the caches."""
        wide, heads = 2 * ffn, (spec.heads + spec.kv_heads) * spec.head_dim
        tables = {
            width: Param((_VOCAB, width), kind="table", name=f"t{width}") for width in (hidden, wide, heads)
        }
        norm = Param((hidden,), name="norm")
        half = spec.head_dim // 2
        rope = Rope(tuple(float(1e4 ** (-at / half)) for at in range(half)))

        def model(ops: Ops) -> Any:
            given = ops.inputs()
            x, gate, turned = (
                ops.embedding(given.token_ids, tables[width]) for width in (hidden, wide, heads)
            )
            x = ops.add(x, ops.rms_norm(x, norm, 1e-6))
            turned = ops.rotate(turned, ops.rope_table(rope), spec.head_dim)
            gated = ops.gated(gate, "silu")
            (kept, *_) = ops.split(gated, (hidden, ffn - hidden)) if ffn > hidden else (x,)
            (more, *_) = ops.split(turned, (hidden, heads - hidden)) if heads > hidden else (x,)
            return ops.take(ops.add(ops.add(x, kept), more), given.logit_rows)

        bound = self._bind(model, [*tables.values(), norm], (), rows, 1, rows + 1)
        widths = {
            "embedding": (hidden + wide + heads) / 3 * (self._item + 4),
            "rms_norm": hidden * 8,
            "add": hidden * 12,
            "rotate": heads * 8,
            "gated": ffn * 12,
        }
        return [
            Case(
                f"{op}, {rows} row{'s' * (rows > 1)}",
                "float32",
                float(nbytes * rows),
                0.0,
                "float32",
                _timed(bound, _batch(1, rows, rows), op),
            )
            for op, nbytes in widths.items()
        ]

    def sampler(self, vocab: int, rows: int, name: str, **sampling: Any) -> Case:
        """Draw a token for each of `rows` rows of `vocab` logits."""
        pool = self._whole_model().pool
        sampler = Sampler(vocab, rows, pool=pool)
        for row in range(rows):
            sampler.add(row, SamplingSpec(max_tokens=1 << 30, seed=row, **sampling), (), ())
        logits = np.random.default_rng(0).standard_normal((rows, vocab), np.float32)

        def seconds() -> float:
            begun = time.perf_counter()
            sampler.sample(logits, range(rows))
            return time.perf_counter() - begun

        kind = f"sampler {vocab}, {name}, {rows} row{'s' * (rows > 1)}"
        return Case(kind, "float32", 4.0 * vocab * rows, 0.0, "float32", seconds)

    # ---- the timing ---------------------------------------------------------------------------------------

    def _bind(
        self,
        model: Callable[[Ops], Any],
        params: Sequence[Param],
        specs: Sequence[AttentionSpec],
        tokens: int,
        sequences: int,
        context: int,
        matrix: Layout | None = None,
    ) -> NativeRunnable:
        """`matrix`: what every matrix is; None: dense numbers of the dtype, one set for each shape."""
        limits = Limits(tokens, sequences, sequences, _BLOCK, context)
        first = {param.shape: param for param in reversed(params)}
        made = {
            shape: self._dummy.make(param)
            for shape, param in first.items()
            if param.kind != "matrix" or not matrix
        }
        tensors: Iterable[tuple[Param, Layout]] = (
            (param, matrix if matrix is not None and param.kind == "matrix" else made[param.shape])
            for param in params
        )
        bound = NativeRunnable(trace(model), specs, tensors, self.precision, limits, threads=self.threads)
        bound.allocate_cache(sequences * -(-context // _BLOCK))
        return bound

    def _whole_model(self) -> NativeRunnable:
        """A small model whose threads read memory and multiply, for the limits."""
        if self._model is None:
            table = Param((_VOCAB, 32), kind="table", name="table")
            weight = Param((32, 32), kind="matrix", name="w")

            def model(ops: Ops) -> Any:
                given = ops.inputs()
                return ops.take(ops.linear(ops.embedding(given.token_ids, table), weight), given.logit_rows)

            self._model = self._bind(model, [table, weight], (), 1, 1, 2)
            self._probe = MemoryProbe(self._model, COLD_BYTES)
        return self._model

    def read_bytes_per_s(self) -> float:
        """What memory gives just now."""
        self._whole_model()
        assert self._probe is not None
        return self._probe.nbytes / self._probe.seconds()

    def peak_ops_per_s(self, kind: str) -> float:
        """What the threads' multiply-adds of such numbers come to just now."""
        return peak(self._whole_model(), kind)

    def run(self, case: Case) -> dict[str, Any]:
        """Time one case, each run beside a read of memory and the multiply-adds of the same threads."""
        case.seconds()
        seconds: list[float] = []
        read: list[float] = []
        peaks: list[float] = []
        begun = time.perf_counter()
        while len(seconds) < self.iterations and not (len(seconds) >= 3 and _late(begun)):
            rate, most = self.read_bytes_per_s(), self.peak_ops_per_s(case.arithmetic)
            seconds.append(case.seconds())
            read.append(case.nbytes / seconds[-1] / rate)
            peaks.append(case.operations / seconds[-1] / most)
        took = median(seconds)
        return {
            "kernel": case.name,
            "format": case.format,
            "arithmetic": case.arithmetic,
            "seconds": took,
            "bytes": case.nbytes,
            "bytes_per_s": case.nbytes / took,
            "ops_per_s": case.operations / took,
            "fraction_of_read_limit": median(read),
            "fraction_of_peak": median(peaks),
        }


def _timed(model: NativeRunnable, batch: Batch, op: str) -> Callable[[], float]:
    """Runs a plan once: the mean seconds of its ops of one kind."""

    def seconds() -> float:
        model.plan.set_profiling(True)
        model.forward(batch)
        times = [took for name, took in model.plan.profile() if name.split()[0] == op]
        return sum(times) / len(times)

    return seconds


def _late(begun_s: float) -> bool:
    return time.perf_counter() - begun_s > _CASE_S


def _copies(nbytes: int, cold_bytes: int) -> int:
    """How many make up `cold_bytes`, at most _MOST_COPIES."""
    return max(1, min(-(-cold_bytes // nbytes), _MOST_COPIES))


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
