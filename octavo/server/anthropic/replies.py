"""What the Messages API answers with: the message, its blocks and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """What the model said."""

    text: str = ""
    citations: list[Any] | None = None


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    """What the model thought."""

    thinking: str = ""
    signature: str = ""
    """A digest of the thought, for clients that keep none without one; nothing here checks it."""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A tool that the model wants used."""

    id: str
    name: str
    input: dict[str, Any] = msgspec.field(default_factory=dict)


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    """Token counts; `input_tokens` are those that the cache did not have."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int


class MessageReply(msgspec.Struct, kw_only=True):
    """Body of a reply that is not streamed."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block] = msgspec.field(default_factory=list)
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class MessageStart(msgspec.Struct, kw_only=True, tag_field="type", tag="message_start"):
    """The message as it begins."""

    message: MessageReply


class BlockStart(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    """An empty block."""

    index: int
    content_block: Block


class TextDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignatureDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="signature_delta"):
    """The end of a thought."""

    signature: str


class InputDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    """More of a tool's input, as JSON text."""

    partial_json: str


class BlockDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    """News of a block."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    """The end of a block."""

    index: int


class StopDelta(msgspec.Struct, kw_only=True):
    """Why the message ended."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="message_delta"):
    """The message's last news."""

    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, kw_only=True, tag_field="type", tag="message_stop"):
    """The end."""


class Ping(msgspec.Struct, kw_only=True, tag_field="type", tag="ping"):
    """A sign of life."""


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping


class TokenCount(msgspec.Struct, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    input_tokens: int


class ModelEntry(msgspec.Struct, kw_only=True):
    """One served name, as Anthropic's clients read it."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelPage(msgspec.Struct, kw_only=True):
    """All served names."""

    data: list[ModelEntry]
    has_more: bool = False
    first_id: str | None
    last_id: str | None
