"""What the Responses API answers with: the response, its items and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.replies import TokenLogprob

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """Text of a message."""

    text: str = ""
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Text of a thought."""

    text: str = ""


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = msgspec.field(default_factory=list)


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought."""

    id: str
    status: ItemStatus = "in_progress"
    summary: list[Any] = msgspec.field(default_factory=list)
    content: list[ReasoningText] = msgspec.field(default_factory=list)
    encrypted_content: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the model wants called."""

    id: str
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class InputDetails(msgspec.Struct, kw_only=True):
    """Of the input tokens."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    """Of the output tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, kw_only=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens", "content_filter"]


class RawMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="raw_message_tokens"):
    """A text with its tokens, for `enable_response_messages`."""

    message: str
    tokens: list[int]


class ResponseReply(msgspec.Struct, kw_only=True):
    """The response object."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | UnsetType = UNSET
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    input_messages: list[RawMessage] | UnsetType = UNSET
    output_messages: list[RawMessage] | UnsetType = UNSET


class DeletedReply(msgspec.Struct, kw_only=True):
    """Body of DELETE."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, kw_only=True):
    """Body of GET .../input_items."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokensReply(msgspec.Struct, kw_only=True):
    """Body of POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class StateEvent(msgspec.Struct, kw_only=True):
    """An event that carries the whole response: response.created, .completed and so on."""

    type: str
    response: ResponseReply
    sequence_number: int


class ItemEvent(msgspec.Struct, kw_only=True):
    """response.output_item.added and .done."""

    type: str
    item: OutputItem
    output_index: int
    sequence_number: int


class PartEvent(msgspec.Struct, kw_only=True):
    """response.content_part.added and .done."""

    type: str
    part: OutputText | ReasoningText
    item_id: str
    output_index: int
    content_index: int = 0
    sequence_number: int


class TextEvent(msgspec.Struct, kw_only=True):
    """response.output_text.delta and .done, response.reasoning_text.delta and .done."""

    type: str
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    sequence_number: int


class ArgumentsEvent(msgspec.Struct, kw_only=True):
    """response.function_call_arguments.delta and .done."""

    type: str
    item_id: str
    output_index: int
    delta: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    sequence_number: int


class ErrorEvent(msgspec.Struct, kw_only=True):
    """The last event of a stream that broke before its response was known."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None = None
    sequence_number: int


ResponseEvent = StateEvent | ItemEvent | PartEvent | TextEvent | ArgumentsEvent | ErrorEvent
