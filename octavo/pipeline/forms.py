"""From what a caller demands (a schema, a regex, choices, a grammar, tags) to llguidance's own text of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.pipeline import schema as schemas
from octavo.pipeline.tags import structural_tag
from octavo.types.structured import StructuredOutputsParams

MAX_CHARS = 512 << 10
"""Of a schema, a regex or a grammar as text."""
_MAX_CHOICES = 10_000
WHITESPACE = r"( |\r?\n{1,2}[ \t]{0,40})"
"""Between the parts of JSON unless the caller says otherwise: enough for any usual print, never endless."""

_NAMES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def name_of(params: StructuredOutputsParams) -> str:
    """The one form that is demanded."""
    return next(name for name in _NAMES if getattr(params, name) not in (None, False))


def source(params: StructuredOutputsParams) -> str:
    """llguidance's text of the grammar. Raises BadRequest for what cannot be meant."""
    params.verify()
    name = name_of(params)
    if (schema := json_schema(params)) is not None:
        return schemas.grammar(schema, options(params))
    if name == "structural_tag":
        assert params.structural_tag is not None
        return structural_tag(_parsed("structural_tag", params.structural_tag), options(params))
    if name == "choice":
        assert params.choice is not None
        return _choice(params.choice)
    text = getattr(params, name)
    check_size(name, text)
    return regex(text) if name == "regex" else grammar(text)


def json_schema(params: StructuredOutputsParams) -> Any:
    """The schema of a form that is JSON, None for the other forms. Raises BadRequest."""
    if params.json_object:
        return {"type": "object"}
    if params.json is None or params.json is False:
        return None
    return {} if params.json is True else _parsed("json", params.json)


def options(params: StructuredOutputsParams) -> schemas.Options:
    """How JSON is to be written."""
    return schemas.Options(
        whitespace="" if params.disable_any_whitespace else params.whitespace_pattern or WHITESPACE,
        closed=params.disable_additional_properties,
    )


def regex(text: str) -> str:
    """A regular expression that the answer matches; ``\\d`` and ``\\w`` mean ASCII, as in JavaScript."""
    from llguidance import LLMatcher, regex_to_lark

    return str(LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'dw')}/"))


def grammar(text: str) -> str:
    """A grammar in GBNF (``root ::= ...``) or Lark (``start: ...``)."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(LLMatcher.grammar_from_lark(any_to_lark(text)))
    except Exception as error:  # the library's converter raises whatever comes
        raise BadRequest(f"The grammar cannot be read: {str(error)[:300]}.") from None


def check_size(name: str, text: str) -> None:
    """Refuse what is too long to be compiled for one request."""
    if len(text) > MAX_CHARS:
        raise BadRequest(f"{name} has {len(text)} characters; the limit is {MAX_CHARS}.")


def _parsed(name: str, value: Any) -> Any:
    """A JSON value given as such or as text."""
    if not isinstance(value, str):
        return value
    check_size(name, value)
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"{name} is a text, but no JSON: {error}.") from None


def _choice(choices: list[str]) -> str:
    """One of these texts."""
    from llguidance import LLMatcher

    if len(choices) > _MAX_CHOICES:
        raise BadRequest(f"choice has {len(choices)} texts; the limit is {_MAX_CHOICES}.")
    check_size("choice", "".join(choices))
    written = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(choices))
    return str(LLMatcher.grammar_from_lark(f"start: {written}"))
