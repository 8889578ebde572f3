"""Which formats a model writes: named by flags, or read off its chat template."""

from __future__ import annotations

import msgspec

from octavo.errors import ConfigError
from octavo.log import logger
from octavo.parsers.formats import (
    HARMONY_REASONING,
    HARMONY_TOOLS,
    REASONING_ALIASES,
    REASONING_FORMATS,
    TOOL_ALIASES,
    TOOL_FORMATS,
)
from octavo.parsers.parser import ReplyFormat

log = logger(__name__)

AUTO = "auto"
NONE = "none"

_TOOLS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY_TOOLS),
    (("｜DSML｜",), "deepseek_v32"),
    (("<｜tool▁call▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁call▁begin｜>",), "deepseek_v31"),
    (("<|tool_call_argument_begin|>",), "kimi_k2"),
    (("]<]minimax[>[",), "minimax_m3"),
    (("<start_function_call>",), "functiongemma"),
    (("<|tool_call>", "<tool_call|>"), "gemma4"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<steptml:invoke",), "step3"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<longcat_tool_call>",), "longcat"),
    (("<arg_key>",), "glm45"),
    (("<|tools_prefix|>",), "apertus"),
    (("<|START_ACTION|>",), "cohere_command3"),
    (("<|message_sep|>", "function call<|role_sep|>"), "gigachat3"),
    (("function call<|role_sep|>",), "gigachat3"),
    (("<|action_start|>",), "internlm"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<function_calls>",), "olmo3"),
    (("<function=",), "qwen3_xml"),
    (("<|tool_call|>",), "granite"),
    (("<function_call>",), "granite-20b-fc"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<tool_calls>",), "jamba"),
    (('[{"name": "tool_call_name"',), "xlam"),
    (("<tool_call>",), "hermes"),
    (("functools",), "phi4_mini_json"),
    (("<|python_start|>",), "pythonic"),
    (("[func_name1(",), "pythonic"),
    (("<|start_header_id|>", '"parameters"'), "llama3_json"),
    (("<|start_header_id|>", "tools"), "llama3_json"),
    (("tools",), "hermes"),
)
"""The first row of which a template holds every text says how it calls tools."""

_REASONING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY_REASONING),
    (("<seed:think>",), "seed_oss"),
    (("[THINK]",), "mistral"),
    (("<|channel>", "<channel|>"), "gemma4"),
    (("◁think▷",), "kimi"),
    (("<|inner_prefix|>",), "apertus"),
    (("<|START_THINKING|>",), "cohere_command3"),
    (("<answer>", "<think>"), "hunyuan_a13b"),
    (("<response>", "<think>"), "granite"),
    (("Here is my thought process:",), "granite"),
    (("<minimax:tool_call>", "<think>"), "minimax_m2"),
    (("<｜Assistant｜>", "</think>"), "deepseek_v3"),
    (("<arg_key>", "</think>"), "glm45"),
    (("<|tool_call_argument_begin|>", "</think>"), "kimi_k2"),
    (("</think>",), "qwen3"),
)


_NO_TOOLS = """deepseek_v4 deepseek_v41 dots hf hy_v3 hy_v4 inkling k2_horizon kimi_k3
ling3 minicpm5 muse_glimmer plamo3 poolside_v1 qwen3_json"""
_NO_REASONING = """hf hy_v3 hy_v4 inkling k2_horizon kimi_k3 ling3 minicpmv minimax_m2_append_think
minimax_m3 muse_glimmer plamo3 poolside_v1 granite_thinking_parser deepseek_v41"""
"""vLLM's names of formats that are not here."""


def reply_format(tools: str, reasoning: str, template: str | None) -> ReplyFormat:
    """The format by the names of the flags: vLLM's, ``auto`` (as `template` shows) or ``none``.

    Raises ConfigError for a name that there is not.
    """
    text = template or ""
    tools = _there("--tool-call-parser", tools, (*TOOL_FORMATS, *TOOL_ALIASES, HARMONY_TOOLS), _NO_TOOLS)
    names = (*REASONING_FORMATS, *REASONING_ALIASES, HARMONY_REASONING)
    reasoning = _there("--reasoning-parser", reasoning, names, _NO_REASONING)
    tool_name = _auto(_TOOLS, text) if tools == AUTO else tools.removeprefix(NONE)
    reasoning_name = _auto(_REASONING, text) if reasoning == AUTO else reasoning.removeprefix(NONE)
    if tool_name == HARMONY_TOOLS or reasoning_name == HARMONY_REASONING:
        return ReplyFormat(tool_name=HARMONY_TOOLS, reasoning_name=HARMONY_REASONING, harmony=True)
    tool_key = TOOL_ALIASES.get(tool_name, tool_name)
    reasoning_key = REASONING_ALIASES.get(reasoning_name, reasoning_name)
    thoughts = REASONING_FORMATS.get(reasoning_key)
    if thoughts is not None and reasoning == AUTO:
        # The template is there, so the prompt tells whether the reply begins inside the reasoning.
        thoughts = msgspec.structs.replace(thoughts, implicit=False)
    return ReplyFormat(
        tool_name=tool_name,
        reasoning_name=reasoning_name,
        tools=TOOL_FORMATS.get(tool_key),
        reasoning=thoughts,
    )


def _auto(rows: tuple[tuple[tuple[str, ...], str], ...], template: str) -> str:
    """The first row that fits, "" when none does."""
    return next((name for texts, name in rows if all(text in template for text in texts)), "")


def _there(flag: str, name: str, names: tuple[str, ...], foreign: str) -> str:
    """`name`, or auto with a warning for one that only vLLM has. Raises ConfigError for an unknown one."""
    if name in names or name in (AUTO, NONE):
        return name
    if name in foreign.split():
        log.warning("%s %s: this version of Octavo does not have it; going by the chat template.", flag, name)
        return AUTO
    raise ConfigError(
        f"{flag} {name}: there is no such format.",
        hint=f"Leave it out (auto), or use none or one of: {', '.join(sorted(names))}.",
        param=flag,
    )


def thinking_state(form: ReplyFormat, prompt: str, *, continues: bool = False) -> bool | None:
    """Whether the end of a rendered prompt has opened the reasoning, closed it, or says nothing.

    `continues`: the prompt ends inside the assistant's own message, which may hold more than the marks.
    """
    if form.reasoning is None:
        return None
    if continues:
        started = max(prompt.rfind(mark) for mark in form.reasoning.starts)
        return started > max(prompt.rfind(mark) for mark in form.reasoning.ends)
    tail = prompt.rstrip()
    if tail.endswith(form.reasoning.starts):
        return True
    return False if tail.endswith(form.reasoning.ends) else None
