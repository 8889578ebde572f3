"""The body of POST /v1/responses: every field, its type and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_order
from octavo.server.openai.requests import SharedRequest
from octavo.server.settings import ServerSettings


class TextOptions(msgspec.Struct, kw_only=True):
    """`text`: the form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """`reasoning`: how much the model thinks; summaries are the thoughts themselves here."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(SharedRequest, kw_only=True):
    """Body of POST /v1/responses, vLLM's extensions included. None means "not given" everywhere."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    stream_options: dict[str, Any] | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_retention: str | None = None

    structured_outputs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    enable_response_messages: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    prompt: Any = None
    conversation: Any = None
    context_management: Any = None
    moderation: Any = None
    previous_input_messages: Any = None
    kv_transfer_params: Any = None
    mm_processor_kwargs: Any = None


_REFUSED = {
    "prompt": "Send the text itself as input.",
    "conversation": "Use previous_response_id.",
    "context_management": 'Use "truncation": "auto".',
    "moderation": "Leave it out.",
    "previous_input_messages": "Use previous_response_id or send the items as input.",
    "kv_transfer_params": "Leave it out.",
    "mm_processor_kwargs": "This server takes text only.",
}
"""Fields that would change the answer and are not there: refused by name, never ignored."""

INCLUDES = frozenset(
    {
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
"""What `include` may name; what cannot arise here includes nothing."""

_MAX_METADATA, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512
_MAX_TOP_LOGPROBS = 20


def check(body: ResponsesRequest, settings: ServerSettings) -> None:
    """Rules that need no model. Raises BadRequest."""
    for name, hint in _REFUSED.items():
        if getattr(body, name) not in (None, False, "", [], {}):
            raise BadRequest(f"{name} is not supported.", hint=hint, param=name)
    if body.input is None or body.input == []:
        raise BadRequest("input is empty.", hint="Send text or items.", param="input")
    for name in body.include or ():
        if name not in INCLUDES:
            raise BadRequest(
                f"include names {name[:60]!r}, but has to be among {', '.join(sorted(INCLUDES))}.",
                param="include",
            )
    if body.background and (body.store is False or not settings.max_stored_responses):
        raise BadRequest(
            "background needs the answer to be stored.",
            hint="Leave store out; the server's OCTAVO_MAX_STORED_RESPONSES must not be 0.",
            param="background",
        )
    if body.truncation not in (None, "auto", "disabled"):
        raise BadRequest("truncation must be 'auto' or 'disabled'.", param="truncation")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= _MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be in 0..{_MAX_TOP_LOGPROBS}.", param="top_logprobs")
    stops = body.stop if isinstance(body.stop, list) else []
    at_most("stop", len(stops), settings.max_stop_strings, "strings")
    at_most("logit_bias", len(body.logit_bias or ()), settings.max_listed_ids, "entries")
    at_most("stop_token_ids", len(body.stop_token_ids or ()), settings.max_listed_ids, "ids")
    at_most("tools", len(body.tools or ()), settings.max_tools, "tools")
    check_order(body.priority, body.cache_salt)
    _check_metadata(body.metadata or {})


def _check_metadata(metadata: dict[str, str]) -> None:
    """OpenAI's bounds: it is kept and sent back."""
    at_most("metadata", len(metadata), _MAX_METADATA, "keys")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY_CHARS or len(value) > _MAX_VALUE_CHARS:
            raise BadRequest(
                f"metadata may have keys of {_MAX_KEY_CHARS} and values of {_MAX_VALUE_CHARS} characters.",
                param="metadata",
            )
