"""One table of cases: each op alone, as the smallest model that calls it, so that every backend can run it.

A case's inputs are rows of tables that it embeds (token t of the step reads row t), since that is how numbers
enter a model; its result is what the op gives for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.layers.attention import alibi_slopes
from octavo.layers.base import Layer
from octavo.ops.contract import (
    ACTIVATIONS,
    AttentionSpec,
    Batch,
    ExpertsParams,
    ExpertsSpec,
    Limits,
    Ops,
    Param,
    Precision,
    Rope,
    Value,
)
from octavo.ops.layouts import FLOATS, Dense, Experts, Layout, f32_to_bf16

BLOCK_SIZE = 16
BLOCKS = 12
LIMITS = Limits(tokens=40, sequences=4, logit_rows=40, block_size=BLOCK_SIZE, max_model_len=64)
F32 = NDArray[np.float32]


class OpModel(Layer):
    """A model of one op: its Params with their numbers, and the call."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Layout] = {}
        self.specs: tuple[AttentionSpec, ...] = ()
        self.call: Callable[[Ops], Value] = lambda op: None

    def param(self, name: str, values: NDArray[Any], dtype: str = "float32", kind: str = "vector") -> Param:
        """A Param called `name` with these numbers, stored in `dtype`."""
        values = values.astype(np.float32)
        data = f32_to_bf16(values) if dtype == "bfloat16" else values.astype(FLOATS[dtype])
        param = Param(values.shape, kind=kind, name=name)
        setattr(self, name, param)
        self.tensors[name] = Dense(data, dtype)
        return param

    def noise(self, *shape: int) -> F32:
        return self.rng.standard_normal(shape).astype(np.float32)

    def input(self, name: str, values: F32) -> Callable[[Ops], Value]:
        """A value of the graph that holds row t of `values` for token t."""
        table = self.param(name, values, kind="table")
        return lambda op: op.embedding(op.inputs().token_ids, table)

    def __call__(self, op: Ops, x: Value = None) -> Value:
        return op.take(self.call(op), op.inputs().logit_rows)

    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        return self.specs


@dataclass(frozen=True)
class OpCase:
    """`build` makes the model; `steps` are run one after another on one cache."""

    name: str
    build: Callable[[], OpModel]
    steps: tuple[Batch, ...]
    precision: Precision = field(default_factory=Precision)


def step(
    spans: list[tuple[int, int, int]], rows: list[int] | None = None, prompts: list[int] | None = None
) -> Batch:
    """A step of spans (sequence, first position, count); sequence s has every third block from s on.

    Token ids number the step's tokens. `prompts`: each span's prompt length, for ropes that look at it.
    """
    counts = [count for _, _, count in spans]
    positions = np.concatenate([np.arange(start, start + count) for _, start, count in spans])
    lengths = prompts or [1] * len(spans)
    prompt = np.concatenate([np.full(count, n) for n, count in zip(lengths, counts, strict=True)])
    total = len(positions)
    return Batch(
        token_ids=np.arange(total, dtype=np.int32),
        positions=positions.astype(np.int32),
        rope_lens=np.maximum(positions + 1, prompt).astype(np.int32),
        seq_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array([start + count for _, start, count in spans], np.int32),
        block_tables=np.array([range(s, BLOCKS, 3) for s, _, _ in spans], np.int32),
        logit_rows=np.array(range(total) if rows is None else rows, np.int32),
    )


SIX = (step([(0, 0, 6)]),)
PAGED = (
    step([(0, 0, 13), (1, 0, 19)]),
    step([(0, 13, 1), (1, 19, 15), (2, 0, 1)]),
    step([(2, 1, 34), (0, 14, 4)]),
)
"""Prefill; a decode, a later chunk and a new sequence together; two chunks over a block's edge."""
WHOLE = (step([(0, 0, 13), (1, 0, 19), (2, 0, 1)]), step([(1, 0, 3), (0, 0, 36)]))
"""Whole sequences, as models need them whose tokens see what comes behind."""
WIDE = np.array([-120.0, -30.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 30.0, 90.0, 1e-3], np.float32)


def elementwise(call: Callable[[Ops, Value], Value], values: F32 | None = None) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x = model.input("x", model.noise(6, 12) * 3 if values is None else values)
        model.call = lambda op: call(op, x(op))
        return model

    return build


def pairwise(call: Callable[[Ops, Value, Value], Value]) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x, y = model.input("x", model.noise(6, 20)), model.input("y", model.noise(6, 20))
        model.call = lambda op: call(op, x(op), y(op))
        return model

    return build


def embedding(dtype: str) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        table = model.param("table", model.noise(6, 40), dtype, "table")
        model.call = lambda op: op.embedding(op.inputs().token_ids, table)
        return model

    return build


def learned_positions() -> OpModel:
    model = OpModel()
    table = model.param("table", model.noise(40, 8), kind="table")
    model.call = lambda op: op.embedding(op.inputs().positions, table)
    return model


def linear(out: int, inner: int, dtype: str = "float32", bias: bool = False) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel(out * 1000 + inner)
        x = model.input("x", model.noise(40, inner))
        weight = model.param("weight", model.noise(out, inner), dtype, "matrix")
        added = model.param("bias", model.noise(out)) if bias else None
        model.call = lambda op: op.linear(x(op), weight, added)
        return model

    return build


def tied_table() -> OpModel:
    model = OpModel()
    table = model.param("table", model.noise(40, 16), "bfloat16", "matrix")
    model.call = lambda op: op.linear(op.embedding(op.inputs().token_ids, table), table)
    return model


def rms_norm(width: int, run: int | None, offset: float = 0.0, size: float = 1.0) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x = model.input("x", model.noise(6, width) * np.float32(size))
        weight = None if run is None else model.param("weight", model.noise(run))
        model.call = lambda op: op.rms_norm(x(op), weight, 1e-5, offset)
        return model

    return build


def layer_norm(width: int, run: int | None, bias: bool) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x = model.input("x", model.noise(6, width) + 3)
        weight = None if run is None else model.param("weight", model.noise(run))
        added = model.param("bias", model.noise(run)) if bias and run else None
        model.call = lambda op: op.layer_norm(x(op), weight, added, 1e-5)
        return model

    return build


def split(part: int) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x = model.input("x", model.noise(6, 20))
        model.call = lambda op: op.split(x(op), (8, 3, 9))[part]
        return model

    return build


def rotate(rope: Rope, head_dim: int, heads: int = 2) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel()
        x = model.input("x", model.noise(40, heads * head_dim))
        model.call = lambda op: op.rotate(x(op), op.rope_table(rope), head_dim, rope.interleaved)
        return model

    return build


def attention(heads: int, kv_heads: int, head_dim: int, **more: Any) -> Callable[[], OpModel]:
    def build() -> OpModel:
        model = OpModel(heads * 100 + head_dim)
        q = model.input("q", model.noise(40, heads * head_dim))
        k = model.input("k", model.noise(40, kv_heads * head_dim))
        v = model.input("v", model.noise(40, kv_heads * head_dim))
        spec = AttentionSpec(0, heads, kv_heads, head_dim, **{"scale": head_dim**-0.5, **more})
        model.specs = (spec,)
        model.call = lambda op: op.attention(q(op), k(op), v(op), spec)
        return model

    return build


def sinks(heads: int, kv_heads: int, head_dim: int, size: float, **more: Any) -> Callable[[], OpModel]:
    """Attention whose sinks lie about `size` around nought: below, among and above the scores."""

    def build() -> OpModel:
        model = attention(heads, kv_heads, head_dim, **more)()
        q, k, v = (
            model.input(n, model.noise(40, w * head_dim))
            for n, w in zip("abc", (heads, kv_heads, kv_heads), strict=True)
        )
        sinks = model.param("sinks", model.noise(heads) * np.float32(size))
        (spec,) = model.specs
        model.call = lambda op: op.attention(q(op), k(op), v(op), spec, sinks)
        return model

    return build


def typed() -> OpModel:
    """Rows of one table by token, of another by type, of a third by position."""
    model = OpModel()
    x, types, places = (
        model.param(name, model.noise(rows, 20), kind="table")
        for name, rows in (("x", 40), ("types", 3), ("places", 48))
    )

    def call(op: Ops) -> Value:
        step = op.inputs()
        y = op.add(op.embedding(step.token_ids, x), op.embedding(step.token_types, types))
        return op.add(y, op.embedding(step.positions, places, 2))

    model.call = call
    return model


def means(batch: Batch, firsts: list[int], rows: list[int]) -> Batch:
    """The step, asked for means of rows."""
    return replace(batch, logit_firsts=np.array(firsts, np.int32), logit_rows=np.array(rows, np.int32))


def two_layers() -> OpModel:
    """Two caches must not mix: the second layer's keys are the first one's answers."""
    model = OpModel()
    x = model.input("x", model.noise(40, 32))
    first, second = (AttentionSpec(i, 2, 2, 16, 0.25, window=None if i else 3) for i in range(2))
    model.specs = (first, second)

    def call(op: Ops) -> Value:
        y = op.attention(x(op), x(op), x(op), first)
        return op.attention(y, y, x(op), second)

    model.call = call
    return model


def experts(
    count: int, width: int, ffn: int, dtype: str = "float32", *, bias: bool = False, **more: Any
) -> Callable[[], OpModel]:
    """A mixture whose scores are noise, some of them equal."""

    def build() -> OpModel:
        model = OpModel(count * 1000 + ffn)
        x = model.input("x", model.noise(40, width))
        scores = model.noise(40, count)
        scores[5:9] = np.round(scores[5:9])
        scored = model.input("scores", scores)
        spec = ExpertsSpec(count, **more)
        sizes = {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
        params: dict[str, Param | None] = {}
        for name, (out, inner) in sizes.items():
            layouts = [
                Dense.of(model.noise(out, inner) / np.float32(inner**0.5), dtype) for _ in range(count)
            ]
            params[name] = Param((count, out, inner), kind="experts", name=name)
            setattr(model, name, params[name])
            model.tensors[name] = Experts.of(list(layouts))
            params[f"{name}_bias"] = model.param(f"{name}_bias", model.noise(count, out)) if bias else None
        weights = ExpertsParams(**params)  # type: ignore[arg-type]
        model.call = lambda op: op.experts(x(op), scored(op), weights, spec)
        return model

    return build


def sigmoid_gate() -> OpModel:
    model = OpModel()
    x, gate = model.input("x", model.noise(6, 20)), model.input("gate", model.noise(6, 1) * 9)
    model.call = lambda op: op.sigmoid_gate(x(op), gate(op))
    return model


def inv_freq(dim: int, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(float(x) for x in (base ** -(np.arange(0, dim, 2) / dim)).astype(np.float32))


ROPES = {
    "plain": (Rope(inv_freq(16), magnitude=1.2), 16),
    "partial": (Rope(inv_freq(6)), 16),
    "interleaved": (Rope(inv_freq(16), interleaved=True), 16),
    "interleaved-partial": (Rope(inv_freq(4), interleaved=True), 10),
    "head80": (Rope(inv_freq(80)), 80),
    "dynamic": (Rope(inv_freq(16), switch_tokens=8, dynamic_factor=2.0), 16),
    "long": (
        Rope(inv_freq(16), 1.1, switch_tokens=8, long_inv_freq=inv_freq(16, 99.0), long_magnitude=1.5),
        16,
    ),
}
LENGTHS = (step([(0, 0, 8), (1, 20, 4), (2, 0, 11)], prompts=[8, 9, 11]), step([(0, 8, 1)], prompts=[8]))
"""Prompts up to, beyond and around the switch of eight tokens."""

CASES = (
    *(OpCase(f"embedding-{d}", embedding(d), SIX) for d in FLOATS),
    OpCase("embedding-positions", learned_positions, PAGED),
    *(
        OpCase(f"linear-{o}x{i}", linear(o, i), PAGED)
        for o, i in ((1, 1), (5, 3), (17, 33), (48, 80), (64, 64))
    ),
    *(OpCase(f"linear-{d}", linear(40, 64, d, bias=True), PAGED) for d in FLOATS),
    *(
        OpCase(f"linear-{d}-rounded", linear(24, 32, d, bias=True), PAGED, Precision(activation="bfloat16"))
        for d in FLOATS
    ),
    OpCase("linear-tied", tied_table, SIX),
    OpCase("rms_norm-row", rms_norm(24, 24), SIX),
    OpCase("rms_norm-heads", rms_norm(24, 8), SIX),
    OpCase("rms_norm-plain", rms_norm(24, None), SIX),
    OpCase("rms_norm-offset", rms_norm(33, 33, offset=1.0), SIX),
    OpCase("rms_norm-tiny", rms_norm(16, 16, size=1e-4), SIX),
    OpCase("layer_norm-row", layer_norm(24, 24, True), SIX),
    OpCase("layer_norm-heads", layer_norm(24, 8, False), SIX),
    OpCase("layer_norm-plain", layer_norm(19, None, False), SIX),
    OpCase("add", pairwise(lambda op, x, y: op.add(x, y)), SIX),
    OpCase("mul", pairwise(lambda op, x, y: op.mul(x, y)), SIX),
    OpCase("add-itself", pairwise(lambda op, x, y: op.add(x, x)), SIX),
    OpCase("input-kept", pairwise(lambda op, x, y: op.add(op.scale(op.mul(x, y), 2.0), op.add(x, y))), SIX),
    OpCase("scale", elementwise(lambda op, x: op.scale(x, 1.7)), SIX),
    OpCase("softcap", elementwise(lambda op, x: op.softcap(x, 2.5)), SIX),
    *(
        OpCase(f"activation-{kind}", elementwise(lambda op, x, kind=kind: op.activation(x, kind)), SIX)
        for kind in ACTIVATIONS
    ),
    *(
        OpCase(
            f"activation-{kind}-extremes",
            elementwise(lambda op, x, kind=kind: op.activation(x, kind), np.tile(WIDE, (6, 1))),
            SIX,
        )
        for kind in ACTIVATIONS
    ),
    *(
        OpCase(f"gated-{kind}", elementwise(lambda op, x, kind=kind: op.gated(x, kind)), SIX)
        for kind in ACTIVATIONS
    ),
    *(OpCase(f"split-{part}", split(part), SIX) for part in range(3)),
    OpCase("take-some", elementwise(lambda op, x: op.scale(x, 1.0)), (step([(0, 0, 6)], rows=[4, 1]),)),
    OpCase("take-none", elementwise(lambda op, x: op.scale(x, 1.0)), (step([(0, 0, 6)], rows=[]),)),
    *(OpCase(f"rotate-{name}", rotate(rope, dim), LENGTHS) for name, (rope, dim) in ROPES.items()),
    OpCase("attention-mha", attention(4, 4, 16), PAGED),
    OpCase("attention-gqa", attention(6, 2, 16), PAGED),
    OpCase("attention-mqa-head80", attention(3, 1, 80), PAGED),
    OpCase("attention-head5", attention(2, 1, 5), PAGED),
    OpCase("attention-head64", attention(2, 2, 64), PAGED),
    OpCase("attention-head128", attention(4, 1, 128), PAGED),
    OpCase("attention-window1", attention(2, 2, 16, window=1), PAGED),
    OpCase("attention-window17", attention(4, 2, 16, window=17), PAGED),
    OpCase("attention-softcap", attention(4, 2, 16, softcap=0.8, window=7), PAGED),
    OpCase("attention-scale", attention(2, 1, 16, scale=3.0), PAGED),
    OpCase("attention-alibi", attention(6, 2, 16, slopes=alibi_slopes(6)), PAGED),
    OpCase("attention-alibi-window", attention(3, 1, 24, slopes=alibi_slopes(3, 16.0), window=9), PAGED),
    OpCase("attention-both", attention(4, 2, 16, causal=False), WHOLE),
    OpCase("attention-both-window", attention(3, 3, 24, causal=False, window=5), WHOLE),
    OpCase("attention-both-window1", attention(2, 1, 8, causal=False, window=1), WHOLE),
    OpCase(
        "attention-both-rounded",
        attention(4, 4, 40, causal=False, window=17),
        WHOLE,
        Precision("bfloat16", "bfloat16"),
    ),
    OpCase("types", typed, (*SIX, replace(SIX[0], token_types=np.array([0, 1, 2, 2, 1, 0], np.int32)))),
    OpCase(
        "take-means",
        elementwise(lambda op, x: op.scale(x, 1.0)),
        (means(SIX[0], [0, 2, 5], [1, 5, 5]), means(SIX[0], [3], [3])),
    ),
    OpCase("attention-sinks", sinks(6, 2, 16, 2.0), PAGED),
    OpCase("attention-sinks-strong", sinks(4, 4, 8, 150.0, window=7), PAGED),
    OpCase("attention-sinks-alibi", sinks(4, 2, 8, 1.0, slopes=alibi_slopes(4)), PAGED),
    OpCase("attention-sinks-rounded", sinks(8, 2, 16, 1.0), PAGED, Precision("bfloat16", "bfloat16")),
    OpCase("attention-two-layers", two_layers, PAGED),
    *(OpCase(f"attention-cache-{d}", attention(4, 2, 24), PAGED, Precision(cache=d)) for d in FLOATS),
    *(
        OpCase(f"attention-{cache}-{name}", build, PAGED, Precision(activation, cache=cache))
        for cache in ("int8", "fp8_e4m3")
        for activation in ("float32", "bfloat16")
        for name, build in (
            (f"{activation}", attention(4, 2, 24)),
            (f"{activation}-head5", attention(6, 3, 5, window=9)),
            (f"{activation}-head80", sinks(7, 1, 80, 1.0, softcap=3.0)),
        )
    ),
    OpCase("sigmoid_gate", sigmoid_gate, SIX),
    OpCase("experts", experts(6, 24, 40, top_k=2), PAGED),
    OpCase("experts-odd", experts(5, 33, 17, top_k=3, scoring="chosen", bias=True), PAGED),
    OpCase("experts-one", experts(1, 16, 16, top_k=1, scoring="sigmoid"), PAGED),
    OpCase("experts-all", experts(3, 20, 48, top_k=3, renormalise=True, activation="gelu_tanh"), PAGED),
    OpCase(
        "experts-sigmoid", experts(9, 32, 32, top_k=4, scoring="sigmoid", renormalise=True, scale=2.5), PAGED
    ),
    OpCase(
        "experts-limit",
        experts(4, 48, 56, top_k=2, scoring="chosen", activation="quick_gelu", limit=0.7, bias=True),
        PAGED,
    ),
    *(OpCase(f"experts-{d}", experts(40, 64, 48, d, top_k=4), PAGED) for d in FLOATS),
    OpCase("attention-bf16-head5", attention(6, 3, 5, window=9), PAGED, Precision(cache="bfloat16")),
    OpCase("attention-rounded", attention(4, 2, 24), PAGED, Precision("bfloat16", "bfloat16")),
    OpCase("attention-rounded-head5", attention(6, 2, 5, window=9), PAGED, Precision("bfloat16", "bfloat16")),
    OpCase("attention-rounded-head80", attention(7, 1, 80), PAGED, Precision("bfloat16", "bfloat16")),
)
