"""Arguments of calls that are no JSON object, by the tool's schema: in tags, or as Python's keywords."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from octavo.parsers.schema import is_text, kinds, resolved
from octavo.pipeline.rules import Rules, literal

Pair = Callable[[str, Any], str]
"""(a parameter's name, its schema) -> the expression of the argument."""

_SAYS = ("type", "title", "description", "examples", "default")
_ROOT = frozenset((*_SAYS, "properties", "required", "additionalProperties", "$defs", "definitions"))
"""What the schema of a function's parameters may hold."""
_STRING = frozenset((*_SAYS, "enum", "const", "minLength", "maxLength"))
_GAP = r"/[ \n]{0,4}/"
"""Between two tags."""
_MAX_DEPTH = 16
_SCALARS = frozenset(("integer", "number", "boolean", "null"))
_LOOSE = frozenset(("null", "boolean"))
"""Beside text: kinds that any text is a value of or not."""


class Unheld(Exception):
    """The arguments cannot be held to their schema in this way of writing."""


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """Tags of a function and of each argument."""

    name_end: str
    key: str
    key_end: str
    value_end: str
    end: str = ""
    stops: tuple[str, ...]
    """What text cannot hold besides `value_end`: the parser takes it for the value's end."""
    key_end_of_json: str = ""
    """Where values that are no text have another one."""
    layout: str = ""
    """Around values that are no text."""


def parameters_of(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """(name, schema, whether it must be given) of every parameter, in order. Raises Unheld."""
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list) or not set(schema) <= _ROOT:
        raise Unheld
    if not all(isinstance(name, str) and name in properties for name in required):
        raise Unheld
    return [(name, part, name in required) for name, part in properties.items()]


def takes_anything(schema: Mapping[str, Any]) -> bool:
    """Whether the parameters have no names."""
    free = "properties" not in schema and "required" not in schema and set(schema) <= _ROOT
    return free and schema.get("additionalProperties", True) in (True, {})


def pairs(rules: Rules, schema: Mapping[str, Any], pair: Pair, any_pair: Callable[[], str]) -> str:
    """The arguments one after the other, in the schema's order; any, where it names none. Raises Unheld."""
    if takes_anything(schema):
        return f"({any_pair()} {_GAP}){{0,32}}"
    made = []
    for name, part, must in parameters_of(schema):
        one = f"{rules.rule(pair(plain(name), part))} {_GAP}"
        made.append(one if must else f"({one})?")
    return " ".join(made)


def optional_list(
    rules: Rules, parameters: Sequence[tuple[str, Any, bool]], pair: Pair, comma: str = ", "
) -> str:
    """The same with commas between."""
    made = [(rules.rule(pair(plain(name), part)), must) for name, part, must in parameters]
    if not made:
        return ""
    rest = ['""']
    for one, must in reversed(made):
        next_one = f"{literal(comma)} {one}"
        rest.append(rules.rule(f"{next_one if must else f'({next_one})?'} {rest[-1]}"))
    rest.reverse()
    first = []
    for (one, must), after in zip(made, rest[1:], strict=True):
        first.append(f"{one} {after}")
        if must:
            break
    else:
        first.append('""')
    return rules.rule(" | ".join(first))


def bare_value(rules: Rules, part: Any, root: Mapping[str, Any], tags: Tags) -> tuple[bool, str]:
    """(whether it is text, the expression of a value up to and with its end). Raises Unheld."""
    allowed = kinds(part, root)
    if is_text(allowed):
        return True, _text(rules, resolved(part, root), tags)
    if allowed == kinds({}, {}) and part in (True, {}, None):
        return True, _free(rules, tags)
    simple = resolved(part, root)
    if "string" in allowed and allowed - {"string"} <= _LOOSE and _unbound(simple, root):
        return True, _free(rules, tags)
    return False, f"{rules.document(_standing(part, root))} {rules.written(tags.layout + tags.value_end)}"


def _unbound(part: Any, root: Mapping[str, Any]) -> bool:
    """Whether any text stands for a value of a schema that allows strings besides."""
    options = part.get("anyOf", part.get("oneOf"))
    if options is None:
        return set(part) <= set(_SAYS)
    texts = [resolved(one, root) for one in options if "string" in kinds(one, root)]
    return all(set(one) <= set(_SAYS) for one in texts)


def _free(rules: Rules, tags: Tags) -> str:
    """Any text up to its end."""
    return rules.until(tags.value_end, rules.text_without(tags.stops))


def _text(rules: Rules, part: Mapping[str, Any], tags: Tags) -> str:
    """A string that is written as it is."""
    if not set(part) <= _STRING:
        raise Unheld
    values = part.get("enum", [part["const"]] if "const" in part else None)
    if values is not None:
        if not all(isinstance(value, str) and value.strip() == value and value for value in values):
            raise Unheld
        return f"({' | '.join(map(literal, values))}) {rules.written(tags.layout + tags.value_end)}"
    low, high = _bounds(part, "minLength", "maxLength")
    if not low and high is None:
        return _free(rules, tags)
    return rules.until(tags.layout + tags.value_end, f"/[^<\\n]{{{low},{'' if high is None else high}}}/")


def _bounds(part: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    """The numbers of two keywords; 0 and None where they are not there. Raises Unheld."""
    low, high = part.get(least, 0), part.get(most)
    if type(low) is not int or (most in part and type(high) is not int):
        raise Unheld
    return low, high


def python_value(rules: Rules, part: Any, root: Mapping[str, Any]) -> str:
    """A value in Python: JSON, but for True and False by themselves."""
    if kinds(part, root) == {"boolean"} and not {"enum", "const"} & set(resolved(part, root)):
        return '("True" | "False")'
    return rules.document(_standing(part, root))


def braced_value(rules: Rules, part: Any, root: Mapping[str, Any], quote: str, depth: int = 0) -> str:
    """A value as Gemma writes it: strings between `quote`s, bare keys, and no spaces. Raises Unheld."""
    allowed, own = kinds(part, root), resolved(part, root)
    if depth > _MAX_DEPTH:
        raise Unheld
    if options := _options(own):
        either = [rules.rule(braced_value(rules, one, root, quote, depth + 1)) for one in options]
        return f"({' | '.join(either)})"
    if is_text(allowed):
        mark = rules.written(quote)
        return f"{mark} {_text(rules, own, Tags(name_end='', key='', key_end='', value_end=quote, stops=()))}"
    if allowed <= _SCALARS:
        return rules.document(_standing(part, root))
    if allowed == {"array"} and set(own) <= {*_SAYS, "items", "minItems", "maxItems"} and "items" in own:
        return _braced_list(rules, own, braced_value(rules, own["items"], root, quote, depth + 1))
    if allowed != {"object"} or takes_anything(own):
        raise Unheld

    def pair(key: str, inner: Any) -> str:
        return f"{rules.written(key + ':')} {braced_value(rules, inner, root, quote, depth + 1)}"

    return f'"{{" {optional_list(rules, parameters_of(own), pair, ",")} "}}"'


def _options(part: Mapping[str, Any]) -> list[Any]:
    """The schemas of which one holds, where that is all that a schema says."""
    said = part.get("type")
    if isinstance(said, list) and len(said) > 1 and set(part) <= set(_SAYS):
        return [{"type": kind} for kind in said]
    listed = part.get("anyOf", part.get("oneOf"))
    return listed if isinstance(listed, list) and set(part) <= {*_SAYS, "anyOf", "oneOf"} else []


def _braced_list(rules: Rules, part: Mapping[str, Any], item: str) -> str:
    """A list between brackets."""
    low, high = _bounds(part, "minItems", "maxItems")
    one = rules.rule(item)
    if high == 0:
        return '"[]"'
    more = f'("," {one}){{{max(low - 1, 0)},{"" if high is None else high - 1}}}'
    return f'"[" {one} {more} "]"' if low else f'"[" ({one} {more})? "]"'


def _standing(part: Any, root: Mapping[str, Any]) -> Any:
    """The schema of a parameter by itself, with the definitions that it may refer to."""
    if "$ref" not in json.dumps(part):
        return part
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    if '"#/properties' in json.dumps([part, definitions]) or '"#"' in json.dumps([part, definitions]):
        raise Unheld
    return {**part, **definitions}


def plain(name: str) -> str:
    """The name of a function or of a parameter, where it can stand outside of JSON. Raises Unheld."""
    if not name or len(name) > 64 or not name.replace("-", "_").replace(".", "_").isidentifier():
        raise Unheld
    return name
