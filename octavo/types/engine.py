"""What crosses between the text side, the engine, the executor and the runner.

All structs are frozen plain data (ints, floats, strings, tuples), so a thread, a process and a test are the
same caller. Token ids are Python ints; log-probabilities are natural logarithms.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.types.grammar import Grammar
from octavo.types.lora import Adapter
from octavo.types.pooling import PoolingSpec


class SamplingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved sampling of one sequence: everything decided, nothing left to default later.

    Made by the text side from :class:`~octavo.types.sampling.SamplingParams`, the model's generation config
    and the tokenizer. `temperature` 0 means greedy. `logprobs` and `prompt_logprobs`: None for none, 0 for
    the chosen token only, k for the k best besides, -1 for the whole vocabulary.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    """Always set: the request's own, or one drawn by the text side."""
    eos_id: int | None = None
    """The primary end token: ends with stop_reason None. None when ignore_eos."""
    end_ids: tuple[int, ...] = ()
    """Other end tokens and the user's stop_token_ids: end with the id as stop_reason."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_start: int = 0
    """Positions of the prompt whose log-probabilities nobody wants, from its start."""
    prompt_logprob_ids: tuple[tuple[int, ...], ...] = ()
    """With `prompt_logprobs` 0: tokens to tell of besides, for each position from `prompt_logprob_start` on
    or one tuple for all; -1 is none and gets -inf.
    """
    logprobs_mode: str = "raw_logprobs"
    """What is told of the answer's tokens: also raw_logits, processed_logprobs or processed_logits."""
    logprob_ids: tuple[int, ...] = ()
    """With `logprobs` 0: tokens to tell of besides at each position."""
    skip_cache: bool = False
    """All of the prompt is computed, whatever the prefix cache has of it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] = ()
    """Empty: every token is allowed."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that may not be completed."""
    processors: tuple[Any, ...] = ()
    """The caller's own functions over logits: see runner.processors."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence that the engine is asked to continue (a request with n > 1 becomes n of these)."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingSpec
    arrival_s: float
    """time.monotonic() at arrival."""
    priority: int = 0
    """Lower runs first; only with the priority policy."""
    salt: str = ""
    """Prefix-cache salt: sequences share blocks only under equal salts."""
    adapter: Adapter | None = None
    """The LoRA adapter that answers; None: the model alone."""
    grammar: Grammar | None = None
    """What the answer must match; None: anything."""
    pooling: PoolingSpec | None = None
    """A vector, labels or a score is wanted in place of tokens; then nothing of `sampling` counts."""


NOT_FINITE = "The logits contain "
"""How a `Finish.error` begins that says of NaN or infinity: the weights, or a kernel, are at fault."""
NOTHING_TO_DRAW = (
    "No token may be drawn: structured_outputs, allowed_token_ids, bad_words and min_tokens together "
    "exclude every one."
)
"""A `Finish.error` that is the request's own fault."""


class Finish(msgspec.Struct, frozen=True):
    """How a sequence ended. `reason`: stop, length, abort, error or repetition (doors may rename)."""

    reason: str
    stop_reason: int | str | None = None
    error: str | None = None
    complete: bool = False
    """A grammar left nothing to say: the last token is part of the answer, not an end token."""


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities at one position: entry 0 is the chosen (or given) token, then the best, descending,
    or the tokens that were asked for, in the request's order.

    `ranks[i]` is 1 for the most likely token of the vocabulary, 0 where it was not counted.
    """

    ids: tuple[int, ...]
    values: tuple[float, ...]
    ranks: tuple[int, ...]


class TokenOut(msgspec.Struct, frozen=True, kw_only=True):
    """What one step produced for one sequence. The last one of a sequence carries `finish`."""

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """As long as `tokens` when asked for, else empty."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    """Whole prompt (entry 0 and those before `prompt_logprob_start` are None), on the output that carries the
    first token; else empty."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache (constant for a sequence)."""
    started_s: float | None = None
    """When the sequence first left the queue, time.monotonic(); None while it has not."""
    preemptions: int = 0
    """How often it was put back to wait so far."""
    pooled: Any = None
    """The result of a pooled sequence, a float32 array [width] or [tokens, width]; beside `finish`."""
    finish: Finish | None = None


class NewSequence(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that the runner has not seen, or that comes back after preemption."""

    key: int
    """Small integer that names the sequence in later plans; reused after `ended`."""
    prompt_tokens: int
    """How many of `tokens` are prompt (penalties count the rest as output)."""
    tokens: tuple[int, ...]
    """Prompt, and for a preempted sequence what it had generated."""
    sampling: SamplingSpec
    adapter: Adapter | None = None
    grammar: Grammar | None = None
    pooling: PoolingSpec | None = None


class Work(msgspec.Struct, frozen=True):
    """One sequence's part of a step: compute `count` tokens from position `start`."""

    key: int
    start: int
    count: int
    new_blocks: tuple[int, ...]
    """KV blocks appended to the sequence's block table before this step."""
    sample: bool
    """True when the last of these tokens is the newest: its logits give the next token."""


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One step, decided by the scheduler. `work` orders decodes and prefill chunks freely."""

    new: tuple[NewSequence, ...] = ()
    work: tuple[Work, ...] = ()
    ended: tuple[int, ...] = ()
    """Keys to forget before `new` is read."""


class Sampled(msgspec.Struct, frozen=True):
    """What a sequence got in a step; `tokens` is empty for a chunk that does not sample."""

    key: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt positions start+1 .. start+count that lie inside the prompt, where they are wanted."""
    error: str | None = None
    """What went wrong with this sequence alone (logits that are not numbers); it ends with `error`."""
    complete: bool = False
    """Its grammar allows nothing after these tokens."""
    pooled: Any = None
    """A pooled sequence's result: see TokenOut."""


class StepResult(msgspec.Struct, frozen=True):
    """The answers of a step in the order of the plan's work; times in seconds for the breakdown."""

    sampled: tuple[Sampled, ...]
    arrays_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
