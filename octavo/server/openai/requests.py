"""The bodies that OpenAI's doors take: every field, its type and what is not there yet."""

from __future__ import annotations

from typing import Any

import msgspec

Ids = list[int]


class StreamOptions(msgspec.Struct, kw_only=True):
    """`stream_options`: where token counts appear in a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class SharedRequest(msgspec.Struct, kw_only=True):
    """Fields of every body that generates. None means "not given": the model's default, then vLLM's."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    vllm_xargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None


class CommonRequest(SharedRequest, kw_only=True):
    """Fields of chat and completions."""

    n: int | None = None
    best_of: int | None = None
    """That many are run, and the n likeliest given."""
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    allowed_token_ids: Ids | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    stream_interval: int | None = None
    return_metrics: bool | None = None
    """Tell how long the request took, in `metrics`."""

    metadata: dict[str, Any] | None = None
    session_id: str | None = None

    response_format: dict[str, Any] | None = None
    use_beam_search: bool | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: Any = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    """No effect: there is one."""
    logprob_token_ids: Ids | None = None
    """Of these tokens the log-probabilities are told, in place of the likeliest's."""
    repetition_detection: dict[str, Any] | None = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    mm_payload: Any = None
    return_token_offsets: Any = None
    routed_experts_prompt_start: Any = None
    watermarking: Any = None


class CompletionRequest(CommonRequest, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | bool | None = None
    suffix: str | None = None
    prompt_embeds: Any = None


class ChatFields(CommonRequest, kw_only=True):
    """What one chat and several of them are asked for with."""

    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_prompt_text: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    verbosity: str | None = None
    prediction: Any = None

    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None
    media_io_kwargs: Any = None
    mm_processor_kwargs: Any = None


class ChatRequest(ChatFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]]


class ChatsRequest(ChatFields, kw_only=True):
    """Body of POST /v1/chat/completions/batch."""

    messages: list[list[dict[str, Any]]]
    """A conversation for each choice of the reply."""


NOT_YET: dict[str, str] = {
    "kv_transfer_params": "Leave it out.",
    "ec_transfer_params": "Leave it out.",
    "mm_payload": "This server takes text only.",
    "return_token_offsets": "Leave it out.",
    "routed_experts_prompt_start": "Leave it out.",
    "watermarking": "Leave it out.",
    "suffix": "Put the text before the gap into prompt.",
    "prompt_embeds": "Send prompt as text or token ids.",
    "audio": "This server answers with text only.",
    "web_search_options": "Leave it out.",
    "functions": "Use tools.",
    "function_call": "Use tools and tool_choice.",
    "media_io_kwargs": "This server takes text only.",
    "mm_processor_kwargs": "This server takes text only.",
}
"""Fields that would change the output and are not there: refused by name, never ignored."""
