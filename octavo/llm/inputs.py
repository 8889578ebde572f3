"""Every way of writing prompts and conversations, brought into one: a list of Jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, NotRequired, TypedDict

from octavo.errors import BadRequest
from octavo.types.job import ChatOptions, Job
from octavo.types.sampling import SamplingParams


class TextPrompt(TypedDict):
    """A prompt given as text."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt given as token ids; `prompt` is only shown again in the output."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt | Mapping[str, Any]
PromptType = Prompt
_KNOWN = frozenset({"prompt", "prompt_token_ids", "cache_salt", "type"})


def is_token_ids(value: Any) -> bool:
    """Whether `value` is one prompt of token ids: a non-empty list, tuple or array of integers."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__") or not len(value):
        return False
    first = value[0]
    return hasattr(first, "__index__") and not isinstance(first, bool) and not hasattr(first, "__len__")


def as_prompts(prompts: Any, prompt_token_ids: Any = None) -> list[Prompt]:
    """The list of prompts that one argument means; `prompt_token_ids` is the keyword of older releases.

    Raises BadRequest for anything that is not a prompt, and names its place in the list.
    """
    if prompt_token_ids is not None:
        ids = [prompt_token_ids] if is_token_ids(prompt_token_ids) else list(prompt_token_ids)
        if prompts is not None:
            texts = [prompts] if isinstance(prompts, str) else list(prompts)
            if len(texts) != len(ids):
                raise BadRequest(f"{len(texts)} prompts and {len(ids)} lists of token ids do not pair up.")
            return [{"prompt_token_ids": i, "prompt": t} for t, i in zip(texts, ids, strict=True)]
        return [{"prompt_token_ids": i} for i in ids]
    if prompts is None:
        raise BadRequest("There is no prompt.", hint="Pass a string, token ids, or a list of those.")
    if isinstance(prompts, (str, Mapping)) or is_token_ids(prompts):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise BadRequest(f"A prompt is a string, token ids or a dict, not {type(prompts).__name__}.")
    return list(prompts)


def job_of_prompt(prompt: Prompt, where: str, *, id: str, sampling: SamplingParams, **common: Any) -> Job:
    """One Job of one prompt; `where` names it in errors (``prompt 3``)."""
    if isinstance(prompt, str):
        return Job(id=id, sampling=sampling, prompt=prompt, **common)
    if isinstance(prompt, Mapping):
        return _job_of_dict(prompt, where, id=id, sampling=sampling, **common)
    if is_token_ids(prompt):
        return Job(id=id, sampling=sampling, prompt_ids=_ids(prompt, where), **common)
    if hasattr(prompt, "__len__") and not len(prompt):
        raise BadRequest(f"{where} is empty.", param="prompt")
    raise BadRequest(
        f"{where} is a {type(prompt).__name__}.",
        hint='A prompt is a string, a list of token ids, {"prompt": ...} or {"prompt_token_ids": ...}.',
        param="prompt",
    )


def _job_of_dict(prompt: Mapping[str, Any], where: str, **common: Any) -> Job:
    for key, value in prompt.items():
        if key not in _KNOWN and value:
            raise BadRequest(
                f"{where} has the key {key!r}, which this version of Octavo does not have.",
                hint="It takes prompt, prompt_token_ids and cache_salt.",
                param=str(key),
            )
    if salt := prompt.get("cache_salt"):
        common["salt"] = str(salt)
    if prompt.get("prompt_token_ids") is not None:
        return Job(prompt_ids=_ids(prompt["prompt_token_ids"], where), **common)
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise BadRequest(f"{where} is a dict without prompt or prompt_token_ids.", param="prompt")
    return Job(prompt=text, **common)


def _ids(values: Any, where: str) -> tuple[int, ...]:
    try:
        ids = tuple(index(value) for value in values)
    except TypeError:
        raise BadRequest(f"{where} holds something that is not a token id.", param="prompt") from None
    if not ids:
        raise BadRequest(f"{where} is empty.", param="prompt")
    return ids


def tokenization(kwargs: dict[str, Any] | None) -> dict[str, bool]:
    """Job fields of `tokenization_kwargs`. Raises BadRequest for a key that there is not."""
    for key in kwargs or {}:
        if key != "add_special_tokens":
            raise BadRequest(f"tokenization_kwargs has no {key!r} here.", hint="It takes add_special_tokens.")
    return {key: bool(value) for key, value in (kwargs or {}).items()}


def no_media(mm_processor_kwargs: Any) -> None:
    """Raises BadRequest for settings of images or sounds."""
    if mm_processor_kwargs:
        raise BadRequest(
            "mm_processor_kwargs is for images and sounds; this version of Octavo takes text only.",
            param="mm_processor_kwargs",
        )


def as_conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """The conversations that one argument of `chat` means: one (a list of messages) or a list of them."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise BadRequest(
            "There are no messages.", hint='Pass [{"role": "user", "content": "..."}].', param="messages"
        )
    first = messages[0]
    conversations = [messages] if isinstance(first, Mapping) else list(messages)
    for number, conversation in enumerate(conversations):
        if isinstance(conversation, (str, Mapping)) or not conversation:
            raise BadRequest(f"Conversation {number} is not a list of messages.", param="messages")
        for message in conversation:
            if not isinstance(message, Mapping) or "role" not in message:
                raise BadRequest(f"Conversation {number} has a message without a role.", param="messages")
    return [[dict(message) for message in conversation] for conversation in conversations]


def job_of_chat(conversation: list[dict[str, Any]], options: ChatOptions, **common: Any) -> Job:
    """One Job of one conversation."""
    return Job(messages=tuple(conversation), chat=options, **common)


def pair_sampling(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> list[SamplingParams]:
    """One SamplingParams for each of `count` prompts, each checked; BadRequest when the numbers differ."""
    if params is None:
        return [default] * count
    if isinstance(params, SamplingParams):
        params.verify()
        return [params] * count
    chosen = list(params)
    if len(chosen) != count:
        raise BadRequest(
            f"There are {count} prompts but {len(chosen)} SamplingParams.",
            hint="Give one for all, or one for each prompt.",
            param="sampling_params",
        )
    for one in chosen:
        if not isinstance(one, SamplingParams):
            raise BadRequest(f"sampling_params holds a {type(one).__name__}.", param="sampling_params")
        one.verify()
    return chosen


def pair_priority(priority: int | Sequence[int] | None, count: int) -> list[int]:
    """One priority for each of `count` prompts."""
    if priority is None:
        return [0] * count
    if isinstance(priority, int):
        return [priority] * count
    if len(priority) != count:
        raise BadRequest(f"There are {count} prompts but {len(priority)} priorities.", param="priority")
    return list(priority)
