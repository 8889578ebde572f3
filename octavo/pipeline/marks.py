"""How each format of the parsers writes a call, as rules of a grammar: what models were trained to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.parsers.formats import TOOL_ALIASES
from octavo.pipeline.rules import Rules
from octavo.pipeline.values import (
    Tags,
    Unheld,
    bare_value,
    braced_value,
    optional_list,
    pairs,
    parameters_of,
    python_value,
    takes_anything,
)

if TYPE_CHECKING:
    from octavo.pipeline.tokenizer import Tokenizer

Body = Callable[[Rules, str, Mapping[str, Any]], str]
"""(rules, a function's name, the schema of its arguments) -> the expression of one call."""


class CallMarks(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are marked, and what stands between the marks: objects in JSON, unless there is a `body`."""

    begin: str = ""
    """Empty: an answer that begins with a brace, or a bracket where calls are listed, is a call."""
    end: str = ""
    listed: bool = False
    """One pair of marks around a list of all calls."""
    outer: tuple[str, str] = ("", "")
    """Around all calls, beside the marks of each."""
    name: str = "name"
    arguments: str = "arguments"
    """What the members of a call's object are called."""
    keyed: bool = False
    """Objects of one member, from the function's name to its arguments."""
    numbered: str = ""
    """A first member of each object that counts the calls."""
    body: Body | None = None
    single: bool = False
    """One call ends the answer."""
    optional: bool = True
    """A grammar can tell where a call begins that the model chooses to make."""
    lead: str = ""
    """Reasoning that may come first, as rules of the grammar: see harmony."""


def tagged(head: str, tags: Tags) -> Body:
    """A call in tags; `head` stands before the name."""

    def body(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
        def pair(key: str, part: Any) -> str:
            is_text, value = bare_value(rules, part, schema, tags)
            key_end = tags.key_end if is_text else tags.key_end_of_json or tags.key_end
            return f"{rules.written(tags.key + key + key_end)} {value}"

        def any_pair() -> str:
            free = rules.until(tags.value_end, rules.text_without(tags.stops))
            return f"{rules.written(tags.key)} {_KEY} {rules.written(tags.key_end)} {free}"

        inner = pairs(rules, schema, pair, any_pair)
        return f"{rules.written(head + name + tags.name_end)} {inner} {rules.written(tags.end)}"

    return body


def named(text: str) -> Body:
    """A name and an object: `text` with NAME, JSON and the digits N in it."""
    before, after = text.split("JSON")

    def body(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
        head = [rules.written(part.replace("NAME", name)) for part in before.split("#")]
        return f"{' /[0-9]{1,3}/ '.join(head)} {rules.document(schema)} {rules.written(after)}"

    return body


def _mistral(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
    """From v11 on: a name, an id if the vocabulary has a mark for it, and an object."""
    mark = rules.written("[CALL_ID]")
    given = f"({mark} /[a-zA-Z0-9]{{9}}/)?" if mark.startswith("<[") else ""
    return f"{rules.written(name)} {given} {rules.written('[ARGS]')} {rules.document(schema)}"


def _python(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
    """``name(key=value, key=value)``."""

    def pair(key: str, part: Any) -> str:
        if not key.isidentifier():
            raise Unheld
        return f"{rules.written(key + '=')} {python_value(rules, part, schema)}"

    if takes_anything(schema):
        one = rules.rule(f'/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ "=" {rules.document({})}')
        inner = f'({one} (", " {one}){{0,31}})?'
    else:
        inner = optional_list(rules, parameters_of(schema), pair)
    return f'{rules.written(name + "(")} {inner} ")"'


def _gemma(quote: str) -> Body:
    """``call:name{key:value,key:value}``, strings between `quote`s."""

    def body(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
        return f"{rules.written(f'call:{name}')} {braced_value(rules, schema, schema, quote)}"

    return body


def _minimax_m3(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
    """Tags named by their arguments, each behind one mark."""

    def pair(key: str, part: Any) -> str:
        ends = Tags(name_end="", key="", key_end="", value_end=f"{_M3}</{key}>", stops=(_M3,))
        return f"{rules.written(f'{_M3}<{key}>')} {bare_value(rules, part, schema, ends)[1]}"

    if takes_anything(schema):
        raise Unheld
    inner = pairs(rules, schema, pair, str)
    return f"""{rules.written(f'{name}">')} {inner}"""


_M3 = "]<]minimax[>["
_KEY = r"/[A-Za-z_][A-Za-z0-9_.-]{0,63}/"
_FUNCTION = Tags(
    name_end=">\n",
    key="<parameter=",
    key_end=">\n",
    value_end="</parameter>",
    stops=("<parameter=", "</function>"),
    layout="\n",
    end="</function>\n",
)
_GLM = Tags(
    name_end="\n",
    key="<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    value_end="</arg_value>",
    stops=("<arg_key>", "</tool_call>"),
)


def _invoke(space: str, **other: str) -> Tags:
    """``<invoke name="...">`` and ``<parameter name="...">``, with `space` before the words."""
    key, end = f'<{space}parameter name="', f"</{space}invoke>"
    tags = Tags(
        name_end='">\n',
        key=key,
        key_end='">',
        value_end=f"</{space}parameter>",
        stops=(key, end),
        end=end,
    )
    return msgspec.structs.replace(tags, **other)


_DEEPSEEK = CallMarks(
    begin="<｜tool▁call▁begin｜>",
    end="<｜tool▁call▁end｜>",
    outer=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)

CALL_MARKS: dict[str, CallMarks] = {
    "hermes": CallMarks(begin="<tool_call>", end="</tool_call>"),
    "longcat": CallMarks(begin="<longcat_tool_call>", end="</longcat_tool_call>"),
    "granite-20b-fc": CallMarks(begin="<function_call>"),
    "granite": CallMarks(begin="<|tool_call|>", listed=True),
    "internlm": CallMarks(begin="<|action_start|><|plugin|>", end="<|action_end|>", arguments="parameters"),
    "jamba": CallMarks(begin="<tool_calls>", end="</tool_calls>", listed=True),
    "mistral": CallMarks(begin="[TOOL_CALLS]", listed=True),
    "phi4_mini_json": CallMarks(begin="functools", listed=True),
    "llama3_json": CallMarks(arguments="parameters", single=True),
    "xlam": CallMarks(listed=True, optional=False),
    "gigachat3": CallMarks(begin="function call<|role_sep|>\n", single=True, optional=False),
    "apertus": CallMarks(begin="<|tools_prefix|>", end="<|tools_suffix|>", listed=True, keyed=True),
    "cohere_command3": CallMarks(
        begin="<|START_ACTION|>",
        end="<|END_ACTION|>",
        listed=True,
        numbered="tool_call_id",
        name="tool_name",
        arguments="parameters",
    ),
    "mistral_args": CallMarks(begin="[TOOL_CALLS]", body=_mistral),
    "deepseek_v3": msgspec.structs.replace(
        _DEEPSEEK, body=named("function<｜tool▁sep｜>NAME\n```json\nJSON\n```")
    ),
    "deepseek_v31": msgspec.structs.replace(_DEEPSEEK, body=named("NAME<｜tool▁sep｜>JSON")),
    "kimi_k2": CallMarks(
        begin="<|tool_call_begin|>",
        end="<|tool_call_end|>",
        outer=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        body=named("functions.NAME:#<|tool_call_argument_begin|>JSON"),
    ),
    "openai": CallMarks(
        begin="<|channel|>commentary to=functions.",
        body=named("NAME <|constrain|>json<|message|>JSON"),
        single=True,
        optional=False,
        lead="<|channel|>analysis<|message|>#<|end|><|start|>assistant",
    ),
    "qwen3_xml": CallMarks(begin="<tool_call>", end="</tool_call>", body=tagged("\n<function=", _FUNCTION)),
    "seed_oss": CallMarks(
        begin="<seed:tool_call>",
        end="</seed:tool_call>",
        body=tagged("\n<function=", msgspec.structs.replace(_FUNCTION, key_end=">", layout="")),
    ),
    "glm45": CallMarks(begin="<tool_call>", end="</tool_call>", body=tagged("", _GLM)),
    "glm47": CallMarks(
        begin="<tool_call>",
        end="</tool_call>",
        body=tagged("", msgspec.structs.replace(_GLM, name_end="", key_end="</arg_key><arg_value>")),
    ),
    "deepseek_v32": CallMarks(
        begin='<｜DSML｜invoke name="',
        outer=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        body=tagged("", _invoke("｜DSML｜", key_end='" string="true">', key_end_of_json='" string="false">')),
    ),
    "minimax_m2": CallMarks(
        begin='<invoke name="',
        outer=("<minimax:tool_call>", "</minimax:tool_call>"),
        body=tagged("", _invoke("")),
    ),
    "minimax_m3": CallMarks(
        begin=f'{_M3}<invoke name="',
        end=f"{_M3}</invoke>",
        outer=(f"{_M3}<tool_call>", f"{_M3}</tool_call>"),
        body=_minimax_m3,
        optional=False,
    ),
    "functiongemma": CallMarks(
        begin="<start_function_call>", end="<end_function_call>", body=_gemma("<escape>")
    ),
    "gemma4": CallMarks(begin="<|tool_call>", end="<tool_call|>", body=_gemma('<|"|>')),
    "step3": CallMarks(
        begin='<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="',
        end="<｜tool_call_end｜>",
        outer=("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
        body=tagged("", _invoke("steptml:", name_end='">')),
        optional=False,
    ),
    "pythonic": CallMarks(listed=True, body=_python, optional=False),
    "llama4_pythonic": CallMarks(
        begin="<|python_start|>", end="<|python_end|>", listed=True, body=_python, optional=False
    ),
    "lfm2": CallMarks(begin="<|tool_call_start|>", end="<|tool_call_end|>", listed=True, body=_python),
    "olmo3": CallMarks(begin="<function_calls>\n", end="\n</function_calls>", body=_python, single=True),
}
"""By the parsers' names. In other formats a call that must be made is plain JSON, and one that the model
chooses to make is not held."""


def call_marks(name: str, tokenizer: Tokenizer | None) -> CallMarks | None:
    """The marks of a format by its name; None where there are no rules for it."""
    known = name if name in CALL_MARKS else TOOL_ALIASES.get(name, name)
    if known == "mistral" and tokenizer is not None and tokenizer.token_id("[ARGS]") is not None:
        known = "mistral_args"
    return CALL_MARKS.get(known)
