"""From the body of a Messages request to the job that answers it."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.server.anthropic.blocks import messages, system_text
from octavo.server.anthropic.requests import CountRequest, MessagesRequest, check
from octavo.server.limits import at_most, check_order
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.types.job import ChatOptions, Job
from octavo.types.structured import StructuredOutputsParams

_ASIDE = ("description", "strict")
"""What a tool may have besides its name and schema that a template may show."""


class Prompt(msgspec.Struct, frozen=True):
    """What is rendered."""

    messages: tuple[dict[str, Any], ...]
    chat: ChatOptions


def parse(body: MessagesRequest, state: State, name: str, model: str, salt: str) -> Job:
    """The job. `max_tokens` over the context is cut to it. Raises BadRequest."""
    settings = state.settings
    prompt = prompt_of(body, settings)
    check_order(body.priority, body.cache_salt)
    if body.max_tokens < 1:
        raise BadRequest(f"max_tokens is {body.max_tokens}, but must be at least 1.", param="max_tokens")
    at_most("stop_sequences", len(body.stop_sequences or ()), settings.max_stop_strings, "strings")
    if any(not text for text in body.stop_sequences or ()):
        raise BadRequest("stop_sequences must be non-empty strings.", param="stop_sequences")
    fields = {
        "max_tokens": min(body.max_tokens, state.service.info.max_model_len),
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "structured_outputs": form(body),
        "thinking_token_budget": _budget(body),
    }
    return Job(
        id=name,
        sampling=state.service.preparer.generation.apply(fields),
        messages=prompt.messages,
        chat=prompt.chat,
        priority=body.priority or 0,
        salt=salt,
        model=model,
    )


def prompt_of(body: CountRequest, settings: ServerSettings) -> Prompt:
    """Messages and how to render them. Raises BadRequest."""
    check(body)
    at_most("messages", len(body.messages), settings.max_messages, "messages")
    at_most("tools", len(body.tools or ()), settings.max_tools, "tools")
    made = tuple(messages(body.messages, system_text(body.system)))
    if not made:
        raise BadRequest("messages say nothing.", hint="Send at least one with content.", param="messages")
    tools = tuple(_tool(tool, f"tools.{i}") for i, tool in enumerate(body.tools or ()))
    choice, name = _choice(body, {tool["function"]["name"] for tool in tools})
    hidden = choice == "none" and settings.exclude_tools_when_none
    begun = made[-1]["role"] == "assistant" and "tool_calls" not in made[-1]
    chat = ChatOptions(
        tools=None if hidden else tools or None,
        kwargs=_kwargs(body),
        parse=True,
        whole=not getattr(body, "stream", None),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=not (body.tool_choice or {}).get("disable_parallel_tool_use"),
        add_generation_prompt=not begun,
        continue_final_message=begun,
    )
    return Prompt(made, chat)


def form(body: CountRequest) -> StructuredOutputsParams | None:
    """What the answer has to look like. Raises BadRequest."""
    wanted = (body.output_config.format if body.output_config else None) or body.output_format
    if wanted is None:
        return None
    schema = wanted.get("schema")
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        raise BadRequest(
            "output_config.format must be of type json_schema and have a schema.",
            param="output_config.format",
        )
    return StructuredOutputsParams.of({"json": schema}, "output_config.format")


def _budget(body: MessagesRequest) -> int | None:
    """How many tokens of thought there may be; None: as many as it likes. Raises BadRequest."""
    budget = body.thinking.budget_tokens if body.thinking is not None else None
    if body.thinking is None or body.thinking.type != "enabled" or budget is None:
        return None
    if budget < 1:
        raise BadRequest(
            f"thinking.budget_tokens is {budget}, but must be at least 1.", param="thinking.budget_tokens"
        )
    return budget


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    """A client's own tool as templates know it; Anthropic's run on their servers."""
    kind = tool.get("type")
    if kind not in (None, "custom"):
        shown = kind if isinstance(kind, str) else type(kind).__name__
        raise BadRequest(
            f"{where} is of type {shown[:40]!r}, which this server does not have.",
            hint="Tools with a name and an input_schema work.",
            param=f"{where}.type",
        )
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{where} has no name.", param=f"{where}.name")
    if not isinstance(schema, dict):
        raise BadRequest(f"{where}.input_schema must be an object.", param=f"{where}.input_schema")
    aside = {key: tool[key] for key in _ASIDE if tool.get(key) is not None}
    return {"type": "function", "function": {"name": name, **aside, "parameters": schema}}


def _choice(body: CountRequest, known: set[str]) -> tuple[str, str]:
    """(choice, name of the tool that must be called). Raises BadRequest."""
    if body.tool_choice is None:
        return "auto", ""
    kind, name = body.tool_choice.get("type"), body.tool_choice.get("name")
    if kind in ("auto", "none"):
        return str(kind), ""
    if kind == "any" and known:
        return "required", ""
    if kind == "tool" and isinstance(name, str) and name in known:
        return "named", name
    raise BadRequest(
        "tool_choice must be of type auto, none, any or tool, the last two with tools to choose from.",
        param="tool_choice",
    )


def _kwargs(body: CountRequest) -> dict[str, Any]:
    """What the template is told about thinking; families differ in the name of the switch."""
    kwargs = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        thinks = body.thinking.type != "disabled"
        kwargs.setdefault("enable_thinking", thinks)
        kwargs.setdefault("thinking", thinks)
    if body.output_config is not None and body.output_config.effort is not None:
        kwargs.setdefault("reasoning_effort", body.output_config.effort)
    return kwargs
