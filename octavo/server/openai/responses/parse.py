"""From the body of a Responses request to the job that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_effort
from octavo.server.openai.common import Head
from octavo.server.openai.responses.items import Item, messages, refuse_tool
from octavo.server.openai.responses.replies import ResponseReply
from octavo.server.openai.responses.requests import ResponsesRequest, check
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.types.job import ChatOptions, Job
from octavo.types.sampling import SamplingParams
from octavo.types.structured import StructuredOutputsParams

_PASSED_ON = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "logit_bias"),
    *("skip_special_tokens", "include_stop_str_in_output", "thinking_token_budget"),
)
"""Sampling fields that have the same name here and in SamplingParams."""


def parse(body: ResponsesRequest, state: State, head: Head, salt: str, items: Sequence[Item]) -> Job:
    """The job; `items` are the whole conversation, what was stored before included. Raises BadRequest."""
    check(body, state.settings)
    at_most("input", len(items), state.settings.max_messages, "items")
    tools = function_tools(body)
    choice, name, tools = choose(body, tools)
    asked = tuple(messages(items, body.instructions))
    if not asked:
        raise BadRequest("input is empty.", hint="Send text or items.", param="input")
    hidden = choice == "none" and state.settings.exclude_tools_when_none
    return Job(
        id=head.id,
        sampling=sampling(body, state),
        messages=asked,
        chat=ChatOptions(
            tools=None if hidden else tuple(_shown(tool) for tool in tools) or None,
            kwargs=_kwargs(body),
            parse=True,
            whole=not body.stream,
            tool_choice=choice,
            tool_name=name,
            parallel_tool_calls=body.parallel_tool_calls is not False,
        ),
        priority=body.priority or 0,
        salt=salt,
        model=head.model,
    )


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether the texts come with log-probabilities."""
    return "message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs)


def sampling(body: ResponsesRequest, state: State) -> SamplingParams:
    """The request's sampling over the model's defaults. Raises BadRequest."""
    info = state.service.info
    limit, most = info.max_model_len, info.max_logprobs
    asked = body.max_output_tokens
    if asked is not None and not 0 < asked <= limit:
        raise BadRequest(
            f"max_output_tokens={asked} must be in 1..{limit}, this model's context.",
            param="max_output_tokens",
        )
    fields = {name: getattr(body, name) for name in _PASSED_ON}
    fields["max_tokens"] = asked
    fields["structured_outputs"] = form(body)
    if wants_logprobs(body):
        fields["logprobs"] = body.top_logprobs or 0
        if 0 <= most < fields["logprobs"]:
            raise BadRequest(f"top_logprobs={body.top_logprobs} is more than {most}.", param="top_logprobs")
    return state.service.preparer.generation.apply(fields)


def form(body: ResponsesRequest) -> StructuredOutputsParams | None:
    """What the answer has to look like. Raises BadRequest."""
    wanted = (body.text.format if body.text else None) or {}
    kind = wanted.get("type", "text")
    if kind == "text":
        given = body.structured_outputs
        return None if given is None else StructuredOutputsParams.of(given)
    if body.structured_outputs is not None:
        raise BadRequest("text.format and structured_outputs exclude each other.", param="text.format")
    if kind == "json_object":
        return StructuredOutputsParams.of({"json_object": True}, "text.format")
    if kind != "json_schema":
        raise BadRequest(
            "text.format must be of type text, json_object or json_schema.", param="text.format.type"
        )
    schema = wanted.get("schema")
    if not isinstance(schema, dict):
        raise BadRequest("text.format.schema must be an object.", param="text.format.schema")
    return StructuredOutputsParams.of({"json": schema}, "text.format")


def function_tools(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The tools as they are told back. Raises BadRequest for any that is no function."""
    made = []
    for i, tool in enumerate(body.tools or ()):
        where = f"tools.{i}"
        if tool.get("type") != "function":
            refuse_tool(tool.get("type"), where)
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            raise BadRequest(
                f"{where} has no name.",
                hint='Send {"type": "function", "name": ..., "parameters": ...}.',
                param=f"{where}.name",
            )
        parameters = tool.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise BadRequest(f"{where}.parameters must be a schema.", param=f"{where}.parameters")
        fields = ("name", "description", "parameters", "strict")
        made.append({"type": "function", **{name: tool.get(name) for name in fields}})
    return made


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat templates know it."""
    inner = {name: tool[name] for name in tool if name != "type" and tool[name] is not None}
    return {"type": "function", "function": inner}


def choose(body: ResponsesRequest, tools: list[dict[str, Any]]) -> tuple[str, str, list[dict[str, Any]]]:
    """(choice, name of the function that must be called, tools that may be). Raises BadRequest."""
    choice = body.tool_choice
    if choice is None or choice in ("auto", "none"):
        return str(choice or "auto"), "", tools
    known = [tool["name"] for tool in tools]
    if choice == "required":
        if not tools:
            raise BadRequest("tool_choice is 'required', but there are no tools.", param="tool_choice")
        return "required", "", tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "function":
        if choice.get("name") not in known:
            raise BadRequest("tool_choice names a function that is not among tools.", param="tool_choice")
        return "named", choice["name"], tools
    if isinstance(choice, dict) and kind == "allowed_tools":
        return _allowed(choice, tools)
    raise BadRequest(
        "tool_choice must be 'none', 'auto', 'required', a function or allowed_tools.", param="tool_choice"
    )


def _allowed(choice: dict[str, Any], tools: list[dict[str, Any]]) -> tuple[str, str, list[dict[str, Any]]]:
    """A choice among some of the tools."""
    listed = choice.get("tools")
    given = listed if isinstance(listed, list) else []
    names = [tool.get("name") for tool in given if isinstance(tool, dict)]
    left = [tool for tool in tools if tool["name"] in names]
    mode = choice.get("mode")
    if mode not in ("auto", "required") or not left:
        raise BadRequest(
            "allowed_tools needs the mode 'auto' or 'required' and names of functions among tools.",
            param="tool_choice",
        )
    return mode, "", left


def _kwargs(body: ResponsesRequest) -> dict[str, Any]:
    """What the template is told about thinking."""
    kwargs = dict(body.chat_template_kwargs or {})
    effort = body.reasoning.effort if body.reasoning else None
    check_effort("reasoning.effort", effort)
    if effort == "none":
        kwargs.setdefault("enable_thinking", False)
        kwargs.setdefault("thinking", False)
    elif effort is not None:
        kwargs.setdefault("reasoning_effort", effort)
    return kwargs


def begun(body: ResponsesRequest, top: Head, job: Job, settings: ServerSettings) -> ResponseReply:
    """The response before anything was said: what was asked, told back."""
    text = body.text
    told: dict[str, object] = {"format": (text.format if text else None) or {"type": "text"}}
    if text is not None and text.verbosity is not None:
        told["verbosity"] = text.verbosity
    asked = body.reasoning
    return ResponseReply(
        id=top.id,
        created_at=top.created,
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=top.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={"effort": asked.effort if asked else None, "summary": asked.summary if asked else None},
        safety_identifier=body.safety_identifier,
        store=body.store is not False and settings.max_stored_responses > 0,
        temperature=job.sampling.temperature,
        text=told,
        tool_choice=body.tool_choice or "auto",
        tools=function_tools(body),
        top_logprobs=body.top_logprobs or 0,
        top_p=job.sampling.top_p,
        truncation=body.truncation or "disabled",
        user=body.user if body.user is not None else msgspec.UNSET,
        metadata=body.metadata or {},
    )
