"""Which log-probabilities a request wants, checked against what the server gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import BadRequest
from octavo.pipeline.checks import in_vocab, logprob_values
from octavo.types.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.pipeline.prepare import ModelInfo

_MAX_LOGPROB_VALUES = 64_000_000
"""Ceiling on log-probabilities in one answer: about 1.5 GB as Python numbers, far above any real use."""


def wanted_logprobs(
    params: SamplingParams, info: ModelInfo, max_tokens: int, prompt_tokens: int, count: int
) -> dict[str, Any]:
    """The fields of a SamplingSpec that say so, for `count` answers. Raises BadRequest."""
    vocab = info.vocab_size
    named = tuple(in_vocab("logprob_token_ids", params.logprob_token_ids or (), vocab))
    in_prompt = _named_in_prompt(params, info, prompt_tokens)
    logprobs = 0 if named else within_limit("logprobs", params.logprobs, info)
    prompt_logprobs = 0 if in_prompt else within_limit("prompt_logprobs", params.prompt_logprobs, info)
    each = logprob_values(logprobs, vocab) + len(named)
    each_of_prompt = logprob_values(prompt_logprobs, vocab) + sum(map(len, in_prompt[:1]))
    values = (each * max_tokens + each_of_prompt * prompt_tokens) * count
    if values > _MAX_LOGPROB_VALUES:
        raise BadRequest(
            f"This asks for {values} log-probabilities; the limit is {_MAX_LOGPROB_VALUES}.",
            hint="Lower logprobs, prompt_logprobs, max_tokens or n.",
            param="logprobs",
        )
    return {
        "logprobs": 0 if logprobs is None and count > params.n else logprobs,
        "logprob_ids": named,
        "prompt_logprobs": prompt_logprobs,
        "prompt_logprob_ids": in_prompt,
        "prompt_logprob_start": params.prompt_logprob_start or 0,
    }


def within_limit(name: str, value: int | None, info: ModelInfo) -> int | None:
    """A count of log-probabilities, checked against --max-logprobs."""
    limit = info.max_logprobs
    if value is None or limit == -1:
        return value
    asked = info.vocab_size if value == -1 else value
    if asked > limit:
        raise BadRequest(
            f"{name}={value} asks for {asked} log-probabilities a token; the limit is {limit}.",
            hint=f"Use at most {limit}, or start with --max-logprobs {asked}.",
            param=name,
        )
    return value


def _named_in_prompt(
    params: SamplingParams, info: ModelInfo, prompt_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """The tokens that prompt_logprob_token_ids names, by position or for all of them."""
    given, name, start = (
        params.prompt_logprob_token_ids,
        "prompt_logprob_token_ids",
        params.prompt_logprob_start,
    )
    positions = prompt_tokens - 1 - (start or 0)
    if positions < 0:
        raise BadRequest(
            f"prompt_logprob_start={start} lies behind a prompt of {prompt_tokens} tokens.",
            param="prompt_logprob_start",
        )
    if given is None:
        return ()
    rows = given if isinstance(given[0], list) else [given]
    within_limit(name, len(rows[0]), info)
    in_vocab(name, [token for row in rows for token in row if token >= 0], info.vocab_size)
    if rows is given and len(rows) != positions:
        raise BadRequest(
            f"{name} has {len(rows)} rows, but {positions} tokens of the prompt are told of.",
            hint="Give a row for each token behind the first and prompt_logprob_start, or one flat list.",
            param=name,
        )
    return tuple(map(tuple, rows))
