"""The contract of the ops: every backend gives the same numbers for the same call.

Shapes: `x [tokens, width]` are float32 activations. `tokens` runs over all sequences of the step, one after
another. Heads lie side by side inside the width (`heads * head_dim`). A backend chooses what a value is
(numpy array, torch tensor, trace node); models only pass values from one op to the next.

The obvious implementation is :mod:`octavo.ops.reference`; it is the twin that tests the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Value = Any
"""What a backend computes with: opaque to models."""


@dataclass(eq=False)
class Param:
    """A named tensor that a layer declares. Identity matters: two layers sharing a Param are tied."""

    shape: tuple[int, ...]
    axis: int | None = None
    """The axis that sharding cuts; None: every rank holds it whole."""
    kind: str = "vector"
    """`vector` (norm, bias; kept float32), `matrix` ([out, in], read by linear), `table` ([rows, width]),
    `experts` ([experts, out, in], one matrix each)."""
    name: str = ""
    """The path in the model, e.g. `blocks.3.attention.qkv.weight`; set once by declare."""
    parts: tuple[int, ...] = ()
    """Rows of the pieces that stand one below the other (query, key, value); empty: one piece. A checkpoint
    may hold them apart, and sharding along axis 0 cuts each by itself."""
    exact: bool = False
    """Never rounded by --quantization: a small matrix whose errors decide much (a router)."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `angle[t, i] = position[t] * inv_freq(length[t])[i]`; cos and sin times `magnitude`.

    `length[t]` is what the frequencies may depend on (dynamic NTK, longrope): the larger of the sequence's
    prompt length and the token's position + 1. `inv_freq` is used up to `switch_tokens`; for longer ones
    `long_inv_freq` if given, else the dynamic rule with `dynamic_factor`.
    Su et al. 2021 (RoFormer); scalings as in transformers' modeling_rope_utils.
    """

    inv_freq: tuple[float, ...]
    """[rotary_dim / 2], float32 values."""
    magnitude: float = 1.0
    interleaved: bool = False
    """False: pairs are (i, i + rotary_dim/2). True: (2i, 2i + 1)."""
    switch_tokens: int | None = None
    """None: frequencies never change."""
    long_inv_freq: tuple[float, ...] | None = None
    long_magnitude: float | None = None
    dynamic_factor: float | None = None
    """Dynamic NTK: base * (factor*length/switch_tokens - (factor-1)) ** (dim/(dim-2)) beyond the switch."""
    base: float = 10000.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inv_freq)


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer, as the cache and the kernels need to know it."""

    layer: int
    """Index among the layers that keep keys and values: 0, 1, 2, ..."""
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    """Query at p sees keys p-window+1 .. p; None sees all up to p."""
    softcap: float | None = None
    """score = cap * tanh(score / cap), before the mask (Gemma 2)."""
    causal: bool = True
    """False: keys behind the query are seen too, within a window as many as before it; the step then holds
    the whole sequence."""
    slopes: tuple[float, ...] | None = None
    """ALiBi, one per head: score += slope * (key's position - query's). Press et al. 2022."""


SCORINGS = ("softmax", "sigmoid", "chosen")
"""How scores become shares: softmax over all experts, sigmoid of each, softmax over those chosen."""


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts: y = sum over the `top_k` experts with the largest scores of share * expert(x).

    An expert is down(f(gate(x)) * up(x)), f an activation; with a `limit` down(f(min(gate(x), limit)) *
    (clip(up(x), -limit, limit) + 1)), as gpt-oss has it. Of equal scores the lower number is chosen. Shazeer
    et al. 2017; Jiang et al. 2024 (Mixtral).
    """

    experts: int
    top_k: int
    scoring: str = "softmax"
    """One of SCORINGS."""
    renormalise: bool = False
    """Shares are divided by the sum of the chosen ones."""
    scale: float = 1.0
    """A factor on all shares."""
    activation: str = "silu"
    limit: float | None = None


@dataclass(frozen=True)
class ExpertsParams:
    """The weights of a mixture: gate and up [experts, ffn, width], down [experts, width, ffn], biases
    [experts, out]."""

    gate: Param
    up: Param
    down: Param
    gate_bias: Param | None = None
    up_bias: Param | None = None
    down_bias: Param | None = None

    def all(self) -> tuple[Param, ...]:
        """Those that there are."""
        found = (self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias)
        return tuple(param for param in found if param is not None)


@dataclass(frozen=True)
class Batch:
    """The arrays of one step, int32. Sequence s owns tokens seq_starts[s] .. seq_starts[s+1]-1.

    A sequence's tokens are at consecutive positions ending at context_lens[s]-1. Position p of sequence s
    lives in slot p % block_size of block block_tables[s, p // block_size].
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    rope_lens: NDArray[np.int32]
    """[tokens] max(prompt length, position + 1): see Rope."""
    seq_starts: NDArray[np.int32]
    """[sequences + 1]"""
    context_lens: NDArray[np.int32]
    """[sequences] keys visible after this step, this step's tokens included."""
    block_tables: NDArray[np.int32]
    """[sequences, blocks], row-contiguous; entries past the context are ignored."""
    logit_rows: NDArray[np.int32]
    """[rows] which tokens' logits are wanted; may be empty."""
    adapters: NDArray[np.int32] | None = None
    """[sequences] the place of each one's adapter (ops.adapters), -1 for none; None: none in this step."""

    token_types: NDArray[np.int32] | None = None
    """[tokens] which segment of a pair each token is of (BERT); None: all 0."""
    logit_firsts: NDArray[np.int32] | None = None
    """[rows] where the runs of tokens begin whose means are wanted in place of single rows, and which end at
    logit_rows; None: single rows."""

    @property
    def tokens(self) -> int:
        return int(self.token_ids.shape[0])


@dataclass(frozen=True)
class Precision:
    """How a bound model rounds. `activation`: what a matrix sees of its input (float32 or bfloat16)."""

    activation: str = "float32"
    cache: str = "float32"
    """KV entries: float32, float16, bfloat16, fp8_e4m3 (saturated) or int8 (each head of a token scaled)."""
    quantized: str = "int8"
    """What a quantized matrix sees of its input: int8 (blocks of 32 with a scale), bfloat16, float32."""
    stated: bool = False
    """Whether a matrix that states how its input is rounded (W8A8) sees that beside float `quantized` too."""

    @property
    def rounds_attention(self) -> bool:
        """Whether attention multiplies bfloat16 numbers, the query and the softmax weights rounded to it."""
        return self.activation == "bfloat16" and self.cache in ("bfloat16", "fp8_e4m3", "int8")


@dataclass(frozen=True)
class Limits:
    """The largest step a bound model must take; sizes its buffers once."""

    tokens: int
    sequences: int
    logit_rows: int
    block_size: int = 16
    max_model_len: int = 4096


class Ops(Protocol):
    """The op set. Every method returns a value; none changes its inputs."""

    def inputs(self) -> BatchValues:
        """The step's arrays as values, for the calls below."""

    def embedding(self, ids: Value, table: Param, offset: int = 0) -> Value:
        """Rows `table[ids + offset]` as float32. ids [n] -> [n, width]."""

    def linear(self, x: Value, weight: Param, bias: Param | None = None) -> Value:
        """x [n, in] @ weight.T [in, out] + bias -> [n, out]; sums in float32."""

    def rms_norm(self, x: Value, weight: Param | None, eps: float, offset: float = 0.0) -> Value:
        """x / sqrt(mean(x^2) + eps) * (weight + offset), over runs of len(weight) (None: the row).

        A weight of head_dim values normalises every head by itself. Zhang & Sennrich 2019.
        """

    def layer_norm(self, x: Value, weight: Param | None, bias: Param | None, eps: float) -> Value:
        """(x - mean) / sqrt(var + eps) * weight + bias over each run of len(weight). Ba et al. 2016."""

    def add(self, x: Value, y: Value) -> Value:
        """x + y, same shape."""

    def mul(self, x: Value, y: Value) -> Value:
        """x * y, same shape."""

    def scale(self, x: Value, factor: float) -> Value:
        """x * factor."""

    def activation(self, x: Value, kind: str) -> Value:
        """Elementwise: see ACTIVATIONS."""

    def gated(self, x: Value, kind: str) -> Value:
        """x [n, 2f] -> activation(x[:, :f]) * x[:, f:] -> [n, f]. Shazeer 2020."""

    def split(self, x: Value, widths: Sequence[int]) -> tuple[Value, ...]:
        """Column slices that together are x."""

    def rope_table(self, rope: Rope) -> Value:
        """This step's cosines and sines [tokens, rotary_dim] (cos then sin), made once a step."""

    def rotate(self, x: Value, table: Value, head_dim: int, interleaved: bool = False) -> Value:
        """Rotate the first rotary_dim of every head of x [tokens, heads*head_dim] by the table's angles."""

    def attention(
        self, q: Value, k: Value, v: Value, spec: AttentionSpec, sinks: Param | None = None
    ) -> Value:
        """Write k, v [tokens, kv_heads*head_dim] to the paged cache, then softmax(scale q k^T) v, causal
        unless `spec` says otherwise.

        q [tokens, heads*head_dim] -> the same shape; query head h reads KV head h // (heads/kv_heads).
        `sinks` [heads]: a score more in each head's softmax, of a key without a value (gpt-oss).
        """

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)."""

    def experts(self, x: Value, scores: Value, weights: ExpertsParams, spec: ExpertsSpec) -> Value:
        """A mixture of experts: x [n, width], scores [n, experts] -> [n, width]; see ExpertsSpec.

        A token's experts are summed in the order of their numbers, in float32.
        """

    def sigmoid_gate(self, x: Value, gate: Value) -> Value:
        """x [n, width] * sigmoid(gate [n, 1])."""

    def take(self, x: Value, rows: Value) -> Value:
        """x[rows], or where the step has logit_firsts the mean of x[first] .. x[row] for each of them."""


@dataclass(frozen=True)
class BatchValues:
    """Values of the batch arrays that models pass to ops."""

    token_ids: Value
    positions: Value
    logit_rows: Value
    token_types: Value = None


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu")
"""gelu is the exact one (erf); gelu_tanh Hendrycks & Gimpel's approximation; quick_gelu x*sigmoid(1.702x)."""


class Runnable(Protocol):
    """A bound model."""

    def allocate_cache(self, blocks: int) -> None:
        """(Re)allocate the KV cache: `blocks` blocks of Limits.block_size tokens in every layer."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [len(logit_rows), vocab]; the array is valid until the next call."""
