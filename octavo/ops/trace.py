"""The tracing ops: a forward pass that computes nothing and writes down what it called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.ops.contract import (
    AttentionSpec,
    BatchValues,
    ExpertsParams,
    ExpertsSpec,
    Ops,
    Param,
    Rope,
)


@dataclass(eq=False)
class Node:
    """One op call, and the value it gives. `rows` is "tokens" or "logits": how many rows the value has."""

    op: str
    width: int
    rows: str = "tokens"
    inputs: tuple[Node, ...] = ()
    weight: Param | None = None
    bias: Param | None = None
    experts: ExpertsParams | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    def params(self) -> tuple[Param, ...]:
        """All that the op reads."""
        found = tuple(param for param in (self.weight, self.bias) if param)
        return found + (self.experts.all() if self.experts else ())


@dataclass(frozen=True)
class Graph:
    """A traced model: its ops in the order of the calls, each used value before its user."""

    nodes: tuple[Node, ...]
    logits: Node


class TraceOps:
    """contract.Ops over Nodes: checks widths as it goes, so that a family's slip shows where it was made."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._tables: dict[Rope, Node] = {}
        self._inputs = BatchValues(
            Node("token_ids", 1),
            Node("positions", 1),
            Node("logit_rows", 1, "logits"),
            Node("token_types", 1),
        )

    def _record(self, op: str, width: int, *inputs: Node, **rest: Any) -> Node:
        rows = rest.pop("rows", None) or (inputs[0].rows if inputs else "tokens")
        attrs = {k: rest.pop(k) for k in list(rest) if k not in ("weight", "bias", "experts")}
        node = Node(op, width, rows, inputs, attrs=attrs, **rest)
        self.nodes.append(node)
        return node

    def inputs(self) -> BatchValues:
        return self._inputs

    def embedding(self, ids: Node, table: Param, offset: int = 0) -> Node:
        return self._record("embedding", table.shape[1], ids, weight=table, offset=offset)

    def linear(self, x: Node, weight: Param, bias: Param | None = None) -> Node:
        _expect(x.width == weight.shape[1], f"linear {weight.name}: {x.width} into {weight.shape}")
        return self._record("linear", weight.shape[0], x, weight=weight, bias=bias)

    def rms_norm(self, x: Node, weight: Param | None, eps: float, offset: float = 0.0) -> Node:
        group = weight.shape[0] if weight else x.width
        _expect(x.width % group == 0, f"rms_norm: {x.width} values in groups of {group}")
        return self._record("rms_norm", x.width, x, weight=weight, group=group, eps=eps, offset=offset)

    def layer_norm(self, x: Node, weight: Param | None, bias: Param | None, eps: float) -> Node:
        group = weight.shape[0] if weight else x.width
        _expect(x.width % group == 0, f"layer_norm: {x.width} values in groups of {group}")
        return self._record("layer_norm", x.width, x, weight=weight, bias=bias, group=group, eps=eps)

    def add(self, x: Node, y: Node) -> Node:
        _expect((x.width, x.rows) == (y.width, y.rows), f"add: {x.width} to {y.width}")
        return self._record("add", x.width, x, y)

    def mul(self, x: Node, y: Node) -> Node:
        _expect((x.width, x.rows) == (y.width, y.rows), f"mul: {x.width} by {y.width}")
        return self._record("mul", x.width, x, y)

    def scale(self, x: Node, factor: float) -> Node:
        return self._record("scale", x.width, x, factor=factor)

    def activation(self, x: Node, kind: str) -> Node:
        return self._record("activation", x.width, x, kind=kind)

    def gated(self, x: Node, kind: str) -> Node:
        _expect(x.width % 2 == 0, f"gated: {x.width} is no pair")
        return self._record("gated", x.width // 2, x, kind=kind)

    def split(self, x: Node, widths: Sequence[int]) -> tuple[Node, ...]:
        _expect(sum(widths) == x.width, f"split: {list(widths)} of {x.width}")
        starts = [sum(widths[:i]) for i in range(len(widths))]
        return tuple(
            self._record("split", width, x, start=start) for start, width in zip(starts, widths, strict=True)
        )

    def rope_table(self, rope: Rope) -> Node:
        if rope not in self._tables:
            self._tables[rope] = self._record("rope_table", rope.rotary_dim, rope=rope)
        return self._tables[rope]

    def rotate(self, x: Node, table: Node, head_dim: int, interleaved: bool = False) -> Node:
        _expect(x.width % head_dim == 0, f"rotate: {x.width} in heads of {head_dim}")
        return self._record("rotate", x.width, x, table, head_dim=head_dim, interleaved=interleaved)

    def attention(self, q: Node, k: Node, v: Node, spec: AttentionSpec, sinks: Param | None = None) -> Node:
        _expect(q.width == spec.heads * spec.head_dim, f"attention: query of {q.width}")
        _expect(k.width == v.width == spec.kv_heads * spec.head_dim, f"attention: keys of {k.width}")
        _expect(sinks is None or sinks.shape == (spec.heads,), f"attention: sinks of {spec.heads} heads")
        _expect(spec.slopes is None or len(spec.slopes) == spec.heads, f"attention: {spec.heads} slopes")
        return self._record("attention", q.width, q, k, v, weight=sinks, spec=spec)

    def softcap(self, x: Node, cap: float) -> Node:
        return self._record("softcap", x.width, x, cap=cap)

    def experts(self, x: Node, scores: Node, weights: ExpertsParams, spec: ExpertsSpec) -> Node:
        count, ffn, width = weights.gate.shape
        _expect(x.width == width, f"experts {weights.gate.name}: {x.width} into {weights.gate.shape}")
        _expect(scores.width == count == spec.experts, f"experts: {scores.width} scores of {count}")
        _expect(0 < spec.top_k <= count, f"experts: {spec.top_k} of {count}")
        _expect(weights.up.shape == (count, ffn, width), f"experts: up is {weights.up.shape}")
        _expect(weights.down.shape == (count, width, ffn), f"experts: down is {weights.down.shape}")
        return self._record("experts", width, x, scores, experts=weights, spec=spec)

    def sigmoid_gate(self, x: Node, gate: Node) -> Node:
        _expect((gate.width, gate.rows) == (1, x.rows), f"sigmoid_gate: a gate of {gate.width}")
        return self._record("sigmoid_gate", x.width, x, gate)

    def take(self, x: Node, rows: Node) -> Node:
        return self._record("take", x.width, x, rows, rows="logits")


def trace(model: Callable[[Ops], Any]) -> Graph:
    """The graph of a model's forward pass. ValueError when widths do not meet."""
    ops = TraceOps()
    logits = model(ops)
    return Graph(tuple(ops.nodes), logits)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"The model does not fit together: {what}.")
