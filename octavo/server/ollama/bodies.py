"""What Ollama's clients send and get: every field that this server reads or writes.

Unknown keys are ignored, as Ollama ignores them. Durations are in nanoseconds.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Common(msgspec.Struct, kw_only=True):
    """What /api/generate and /api/chat share."""

    model: str = ""
    stream: bool | None = None
    """Left out: true."""
    format: str | dict[str, Any] | None = None
    """"json", or a JSON Schema."""
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None
    think: bool | str | None = None
    """Or how hard to think: low, medium, high, max."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    """False: a prompt that is too long is refused rather than cut."""
    shift: bool | None = None


class OllamaGenerateRequest(Common, kw_only=True):
    """Body of POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    images: list[Any] | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    """What the reply before gave as its `context`."""
    raw: bool | None = None


class OllamaChatRequest(Common, kw_only=True):
    """Body of POST /api/chat."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaCandidate(msgspec.Struct, gc=False):
    """A token that could have stood at a place."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class OllamaLogprob(msgspec.Struct, gc=False):
    """The token that does."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: list[OllamaCandidate] | UnsetType = UNSET


class OllamaFunction(msgspec.Struct):
    """What is called, and with what."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCall(msgspec.Struct):
    """One call, whole."""

    id: str
    function: OllamaFunction


class OllamaMessage(msgspec.Struct, kw_only=True):
    """The assistant's message, or what is new of it."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaToolCall] | UnsetType = UNSET


class Counts(msgspec.Struct, kw_only=True):
    """Tokens and times of a whole request."""

    done_reason: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


class Reply(msgspec.Struct, kw_only=True):
    """What every reply and every line of a stream has; all from `done_reason` on only when it is done."""

    model: str
    created_at: str
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[OllamaLogprob] | UnsetType = UNSET


class OllamaGenerateReply(Reply, kw_only=True):
    """Of /api/generate."""

    response: str = ""
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class OllamaChatReply(Reply, kw_only=True):
    """Of /api/chat."""

    message: OllamaMessage


class EmbedRequest(msgspec.Struct, kw_only=True):
    """Body of POST /api/embed."""

    model: str = ""
    input: str | list[str] = ""
    truncate: bool | None = None
    """False: a text that is too long is refused rather than cut."""
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None


class EmbedReply(msgspec.Struct, kw_only=True):
    """Of /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OneEmbedRequest(msgspec.Struct, kw_only=True):
    """Body of POST /api/embeddings, which /api/embed replaces."""

    model: str = ""
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None


class OneEmbedReply(msgspec.Struct):
    """Of /api/embeddings."""

    embedding: list[float]


class Details(msgspec.Struct, kw_only=True):
    """What a model is, in a list."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str]
    parameter_size: str = ""
    quantization_level: str = ""


class Listed(msgspec.Struct, kw_only=True):
    """One model of GET /api/tags."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class TagsReply(msgspec.Struct):
    """Body of GET /api/tags."""

    models: list[Listed]


class Running(msgspec.Struct, kw_only=True):
    """One model of GET /api/ps."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int = 0
    context_length: int


class PsReply(msgspec.Struct):
    """Body of GET /api/ps."""

    models: list[Running]


class NamedRequest(msgspec.Struct, kw_only=True):
    """Body of /api/show, /api/pull, /api/delete and others: a model by its name."""

    model: str = ""
    name: str = ""
    """How older clients say `model`."""
    verbose: bool | None = None
    stream: bool | None = None
    insecure: bool | None = None


class ShowReply(msgspec.Struct, kw_only=True):
    """Body of POST /api/show."""

    license: str = ""
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Status(msgspec.Struct):
    """A line of progress."""

    status: str
