"""The bodies that OpenAI's doors answer with, and the chunks of their streams (VLLM.md 2.3)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

import octavo

FINGERPRINT = f"octavo-{octavo.__version__}"


class PromptDetails(msgspec.Struct):
    """Which prompt tokens needed no work."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct):
    """What the answer's tokens were."""

    reasoning_tokens: int


class UsageInfo(msgspec.Struct, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | UnsetType = UNSET
    """Only where there was reasoning."""


# An answer may have 20 of these for each token, and nothing in them leads back to them: the collector need
# not walk them again and again.
class TopLogprob(msgspec.Struct, gc=False):
    """One of the most likely tokens at a position; `logprob` is a natural logarithm, at least -9999."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class TokenLogprob(msgspec.Struct, gc=False):
    """The chosen token at a position."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat choice or chunk."""

    content: list[TokenLogprob] | None
    refusal: None = None


class PromptLogprob(msgspec.Struct):
    """One candidate at a prompt position."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry per prompt token, keyed by token id; the first is null."""


class CalledFunction(msgspec.Struct, kw_only=True):
    """A call's function; a later piece of a stream has only more of the arguments."""

    name: str | UnsetType = UNSET
    arguments: str
    """JSON text, as the model wrote it."""


class ToolCall(msgspec.Struct, kw_only=True):
    """A tool call of a message, or a piece of one in a stream (which alone has the index)."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunction


class Message(msgspec.Struct, kw_only=True):
    """The assistant's message."""

    role: str
    content: str | None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None


class ChatReply(msgspec.Struct, kw_only=True):
    """Body of a chat completion that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    system_fingerprint: str = FINGERPRINT
    usage: UsageInfo
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    metrics: dict[str, Any] | None = None


class Delta(msgspec.Struct, kw_only=True):
    """What is new in a chunk."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    """The same under its older name."""
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """One choice's news."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One data line of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str | UnsetType = UNSET
    usage: UsageInfo | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_text: str | UnsetType | None = UNSET
    metrics: dict[str, Any] | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a completion: four lists of equal length; offsets count characters."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One completion, or one choice's news in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | None = None


class CompletionReply(msgspec.Struct, kw_only=True):
    """Body of a completion that is not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: str | None = None
    system_fingerprint: str = FINGERPRINT
    usage: UsageInfo
    metrics: dict[str, Any] | None = None


class CompletionChunk(msgspec.Struct, kw_only=True):
    """One data line of a completion stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | UnsetType = UNSET
    usage: UsageInfo | None = None
    metrics: dict[str, Any] | UnsetType = UNSET


class ModelPermission(msgspec.Struct, kw_only=True):
    """Kept for old clients; says that everything is allowed."""

    id: str
    created: int
    object: Literal["model_permission"] = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct, kw_only=True):
    """One served name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int | None = None
    permission: list[ModelPermission]


class ModelList(msgspec.Struct, kw_only=True):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
