"""What the two OpenAI doors share: checks before any work, sampling, ids, usage."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_order
from octavo.server.openai.forms import structured_outputs
from octavo.server.openai.replies import CompletionDetails, PromptDetails, UsageInfo
from octavo.server.openai.requests import NOT_YET, CommonRequest
from octavo.server.runs import Run, Usage
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.types.sampling import SamplingParams


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every reply and chunk of one request repeats."""

    id: str
    created: int
    model: str


def head(prefix: str, name: str, model: str) -> Head:
    """The head of a reply that begins now; `name` is the request's id without its prefix."""
    return Head(id=f"{prefix}-{name}", created=int(time.time()), model=model)


def refuse_unsupported(body: CommonRequest) -> None:
    """Raises BadRequest for a field that would change the output and is not there yet."""
    for name in body.__struct_fields__:
        if name in NOT_YET and getattr(body, name) not in (None, False, "", [], {}):
            raise BadRequest(f"{name} is not supported yet.", hint=NOT_YET[name], param=name)
    if body.truncation_side not in (None, "left", "right"):
        raise BadRequest("truncation_side must be 'left' or 'right'.", param="truncation_side")


def check_ceilings(body: CommonRequest, settings: ServerSettings, prompts: int) -> None:
    """The product of what one request asks for, before anything is queued (HARDENING S9)."""
    name = "best_of" if (body.best_of or 1) > (body.n or 1) else "n"
    sequences, limit = getattr(body, name) or 1, settings.max_sequences
    if prompts * sequences > limit:
        what = f"{name}={sequences}" if prompts == 1 else f"{prompts} prompts with {name}={sequences}"
        raise BadRequest(
            f"{what} is more than {limit} sequences in one request.",
            hint="--max-num-queued-reqs and VLLM_MAX_N_SEQUENCES allow more.",
            param=name,
        )
    stops = body.stop if isinstance(body.stop, list) else []
    at_most("stop", len(stops), settings.max_stop_strings, "strings")
    at_most("bad_words", len(body.bad_words or ()), settings.max_bad_words, "strings")
    at_most("logit_bias", len(body.logit_bias or ()), settings.max_listed_ids, "entries")
    at_most("stop_token_ids", len(body.stop_token_ids or ()), settings.max_listed_ids, "ids")
    check_order(body.priority, body.cache_salt)
    if body.best_of is not None and body.best_of != (body.n or 1):
        if body.stream:
            raise BadRequest("best_of over n cannot be streamed.", hint="Use n alone.", param="best_of")
        if body.temperature == 0:
            raise BadRequest("best_of with temperature=0 would compare equal answers.", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise BadRequest(
            "stream_options is only for streams.", hint='Add "stream": true.', param="stream_options"
        )


def sampling_params(body: CommonRequest, state: State, **decided: Any) -> SamplingParams:
    """The request's sampling over the model's defaults; `decided` holds what the doors name differently.

    Raises BadRequest for a value outside its range.
    """
    limit = state.service.info.max_model_len
    max_tokens = decided.get("max_tokens")
    if max_tokens is not None and max_tokens > limit:
        raise BadRequest(
            f"max_tokens={max_tokens} is more than this model's context of {limit} tokens.",
            param="max_tokens",
        )
    fields = dict(
        n=body.n,
        best_of=body.best_of,
        use_beam_search=body.use_beam_search,
        length_penalty=body.length_penalty,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logit_bias=body.logit_bias,
        allowed_token_ids=body.allowed_token_ids,
        bad_words=body.bad_words,
        logprob_token_ids=body.logprob_token_ids,
        skip_special_tokens=body.skip_special_tokens,
        spaces_between_special_tokens=body.spaces_between_special_tokens,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        stream_interval=body.stream_interval,
        thinking_token_budget=body.thinking_token_budget,
        repetition_detection=body.repetition_detection,
        structured_outputs=structured_outputs(body),
        **decided,
    )
    return state.service.preparer.generation.apply(fields)


class UsageRules(msgspec.Struct, frozen=True):
    """When a stream tells token counts."""

    last: bool
    every: bool

    @classmethod
    def of(cls, body: CommonRequest, settings: ServerSettings) -> UsageRules:
        """From `stream_options` and the server's setting that forces them."""
        options = body.stream_options
        last = settings.enable_force_include_usage or bool(options and options.include_usage)
        return cls(last=last, every=last and bool(options and options.continuous_usage_stats))


def metrics_info(run: Run, body: CommonRequest, settings: ServerSettings) -> dict[str, Any] | None:
    """How long a request took, for whoever asks (return_metrics, --enable-per-request-metrics)."""
    if not (settings.enable_per_request_metrics or body.return_metrics):
        return None
    clock, tokens = run.clock, run.usage.completion
    decode_s = clock.last_s - clock.first_s
    whole_s = clock.last_s - clock.taken_s
    longest = max(tokens / max(run.choices, 1) - 1, 1)
    return {
        "time_to_first_token_ms": round((clock.first_s - clock.arrived_s) * 1e3, 3),
        "generation_time_ms": round(decode_s * 1e3, 3),
        "mean_itl_ms": round(decode_s * 1e3 / longest, 3),
        "tokens_per_second": round(tokens / whole_s, 3) if whole_s > 0 else None,
        "total_time_ms": round((clock.last_s - clock.arrived_s) * 1e3, 3),
    }


def usage_info(usage: Usage, settings: ServerSettings) -> UsageInfo:
    """The counts so far."""
    details = PromptDetails(usage.cached) if settings.enable_prompt_tokens_details and usage.cached else None
    return UsageInfo(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
        prompt_tokens_details=details,
        completion_tokens_details=CompletionDetails(usage.reasoning) if usage.reasoning else msgspec.UNSET,
    )
