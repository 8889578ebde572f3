"""What crosses between a door (OpenAI, legacy, LLM, command line) and the pipeline.

A door parses bytes into a :class:`Job` and renders :class:`Event` values into bytes. Every accepted job ends,
for each of its sequences, in exactly one event with `finish`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.lora import Adapter
from octavo.types.pooling import PoolingParams
from octavo.types.sampling import SamplingParams


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """One request of a client: exactly one of `prompt`, `prompt_ids`, `messages` is given."""

    id: str
    sampling: SamplingParams
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    """Chat messages as the client sent them (role, content, ...)."""
    chat: ChatOptions | None = None
    add_special_tokens: bool = True
    """For `prompt`: let the tokenizer add BOS and the like. A rendered chat never does unless asked."""
    default_max_tokens: int | None = None
    """When `sampling.max_tokens` is None: this, and when it is None too the rest of the context."""
    truncation_side: str | None = None
    """Where truncate_prompt_tokens cuts: left (the end stays) or right; None: as the server does."""
    priority: int = 0
    salt: str = ""
    model: str = ""
    adapter: Adapter | None = None
    """The LoRA adapter that answers; None: the model alone."""
    raw_logprobs: bool = False
    """Log-probabilities of the model's own logits, whatever --logprobs-mode says: a search ranks by them."""
    pooling: PoolingParams | None = None
    """A vector, labels or a score is wanted: only of a model that pools, and of such a one always."""
    pair: str | None = None
    """The second text, beside `prompt`, of a model that reads pairs."""


class ChatOptions(msgspec.Struct, kw_only=True, frozen=True):
    """How to render `messages` with the chat template."""

    template: str | None = None
    """A caller's own template, already allowed by the door."""
    tools: tuple[dict[str, Any], ...] | None = None
    documents: tuple[dict[str, Any], ...] | None = None
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    parse: bool = False
    """Split the answer into reasoning, text and tool calls, as the model's own format marks them."""
    whole: bool = False
    """With `parse`: nobody reads the answer in pieces, so a tool call is given only when it is complete."""
    tool_choice: str = "auto"
    """auto, none, required, or named: then `tool_name` is the function that must be called."""
    tool_name: str = ""
    parallel_tool_calls: bool = True
    """False: at most one call."""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The first event of a job: the prompt as it was run."""

    prompt: str | None
    prompt_ids: tuple[int, ...]


class CallPiece(msgspec.Struct, frozen=True, kw_only=True):
    """News of one tool call of a sequence: the first piece of an index names it, all add to its arguments."""

    index: int
    """Which call of the answer, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    """The next piece of the arguments' JSON text."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """News of one sequence of a job. Texts are the new part only (a delta), never half a character."""

    index: int
    """Which of the n sequences."""
    text: str = ""
    reasoning: str = ""
    """What the model thought aloud; only of a chat with `parse`."""
    calls: tuple[CallPiece, ...] = ()
    """Tool calls; only of a chat with `parse`."""
    reasoning_tokens: int = 0
    """How many of `tokens` were reasoning."""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    cached_tokens: int = 0
    started_s: float | None = None
    """When the sequence first left the queue, time.monotonic()."""
    pooled: Any = None
    """The result of a pooled job, a float32 array; beside `finish`."""
    finish: Finish | None = None
