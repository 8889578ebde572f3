"""Jinja's immutable sandbox with transformers' extra functions, and with limits that transformers lacks.

A template may loop, call and concatenate only so often, write only so much, and use only so much CPU time;
then it fails with a :class:`jinja2.exceptions.SecurityError`. The counts live in a thread-local
budget, so one compiled template may render in many threads at once.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
"""Loop turns and calls in one rendering."""
MAX_CHARS = 16_000_000
"""Characters that one rendering may write or build in one piece: above any context length in use."""
MAX_TOTAL_CHARS = 1_000_000_000
"""All large pieces that one rendering builds, together: it may keep them all in memory."""
_LARGE_CHARS = 1 << 16
_ENTRY_CHARS = 8
"""What an entry of a list counts as: a pointer's size."""
_COMPILE_S = 1.0
MAX_NUMBER = 1_000_000
"""Largest number that a template may pass to a text method or filter."""

_WIDE_FIELD = re.compile(r"[%{][^%{}]*\d{5}")
_NESTED_FIELD = re.compile(r"%[^%]*\*|\{[^{}]*\{")


class Budget(threading.local):
    """What is left of one rendering in this thread."""

    def __init__(self) -> None:
        self.reset(_COMPILE_S)

    def reset(self, seconds: float) -> None:
        """Fill up for a new rendering. `seconds`: CPU time, so that a busy machine refuses nobody."""
        self.steps = MAX_STEPS
        self.left_chars = MAX_TOTAL_CHARS
        self.seconds = seconds
        self.deadline_s = time.thread_time() + seconds

    def step(self) -> None:
        """Count a loop turn or a call; look at the clock now and then."""
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")
        if not self.steps & 15 and time.thread_time() > self.deadline_s:
            raise SecurityError(f"the template takes more than {self.seconds:g} s")

    def chars(self, count: int) -> None:
        """Refuse a text of `count` characters when that is too much."""
        if count > MAX_CHARS:
            raise SecurityError(f"the template writes more than {MAX_CHARS} characters")
        if count > _LARGE_CHARS:
            self.left_chars -= count
            if self.left_chars < 0:
                raise SecurityError(f"the template builds more than {MAX_TOTAL_CHARS} characters in all")

    def weigh(self, value: Any) -> None:
        """Refuse nested data that would print as more than the limit (a list many times in itself)."""
        left = MAX_CHARS // 64
        stack = [value]
        while stack:
            item = stack.pop()
            left -= 1
            if isinstance(item, Mapping):
                stack.extend(item.values())
            elif isinstance(item, (list, tuple)):
                stack.extend(item)
            elif isinstance(item, str):
                left -= len(item) // 64
            if left < 0 or len(stack) > left + 1:
                self.chars(MAX_CHARS + 1)


budget = Budget()


class _CountLoops(NodeTransformer):
    """Puts a step into every loop's body and sends every ``~`` through the sandbox."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("octavo_step"), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        function = nodes.EnvironmentAttribute("octavo_concat")
        return nodes.Call(function, node.nodes, [], None, None, lineno=node.lineno)


class GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` marks a reply for training; here it only writes its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Any) -> nodes.Node:
        """A block without effect around the body, with a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("write"), [], [], body, lineno=line)

    def write(self, caller: Callable[[], str]) -> str:
        """The body's text."""
        return caller()


class _Namespace(Namespace):
    """``namespace(...)`` that takes no name with a leading underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template cannot store the name {name!r} in a namespace")


class _Dict:
    """``dict(...)`` without the class's other attributes, as in transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """``dict.fromkeys``."""
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' tojson: no HTML escapes, and json.dumps' options."""
    budget.weigh(value)
    _check_numbers((indent,))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _check_numbers(values: Iterable[Any]) -> None:
    """Refuse numbers with which a text method or a filter would build something huge."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"the template uses the number {value}; the limit is {MAX_NUMBER}")


def _concat(parts: Iterable[str]) -> str:
    """Join what a template writes, within the limit."""
    texts: list[str] = []
    total = 0
    for part in parts:
        total += len(part)
        if total > MAX_CHARS:
            break
        texts.append(part)
    budget.chars(total)
    return "".join(texts)


def _finalize(value: Any) -> Any:
    """Looks at what is printed: nested data must not print as more than the limit."""
    if isinstance(value, (list, tuple, dict)):
        budget.weigh(value)
    return value


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name` with checked numbers and a checked size of text results."""

    def run(*args: Any, **kwargs: Any) -> Any:
        budget.step()
        _check_numbers(args)
        _check_numbers(kwargs.values())
        for arg in args:
            if isinstance(arg, (list, tuple, dict)):
                budget.weigh(arg)
        if name == "join" and len(args) >= 2:
            args = (args[0], _listed(args[1]), *args[2:])
        if name in _GROWING:
            _check_filter(name, [arg for arg in (*args, *kwargs.values()) if not isinstance(arg, _CONTEXTS)])
        result = function(*args, **kwargs)
        if isinstance(result, str):
            budget.chars(len(result))
        return result

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(run, mark, getattr(function, mark))
    return run


def _listed(value: Any) -> Any:
    """What a join goes through, as a list of known length."""
    if isinstance(value, (str, list, tuple, dict)) or not isinstance(value, Iterable):
        return value
    items = []
    for item in value:
        budget.step()
        items.append(item)
    return items


_GROWING = frozenset({"replace", "join", "indent", "wordwrap", "format", "truncate", "batch", "urlize"})
_CONTEXTS = (Context, nodes.EvalContext, jinja2.Environment)


def _check_filter(name: str, args: list[Any]) -> None:
    """Filters that may write far more than they read: refuses too large a product of their texts."""
    texts = [len(arg) for arg in args if isinstance(arg, (str, list, tuple))]
    if name == "format" and args:
        _check_format(str(args[0]), tuple(args[1:]))
    elif name == "replace" and len(args) >= 3:
        _check_growth(str(args[0]), name, (str(args[1]), str(args[2])))
    elif len(texts) >= 2:
        budget.chars(texts[0] * max(1, *texts[1:]))


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all chat templates."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
            finalize=_finalize,
        )
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    @property
    def octavo_step(self) -> None:
        """Evaluated by every loop turn."""
        budget.step()

    @staticmethod
    def octavo_concat(*parts: Any) -> str:
        """``a ~ b``."""
        for part in parts:
            _finalize(part)
        return _concat(map(str, parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _CountLoops().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_callable(self, obj: Any) -> bool:
        """As in the sandbox; our own concatenation is safe."""
        return obj is Sandbox.octavo_concat or super().is_safe_callable(obj)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count the call, check its numbers when it is a method of text, and the size of its result."""
        budget.step()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            if getattr(obj, "__name__", "") == "join" and args:
                args = (_listed(args[0]), *args[1:])
            _check_numbers(args)
            _check_numbers(kwargs.values())
            _check_growth(owner, getattr(obj, "__name__", ""), args)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str):
            budget.chars(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse operators whose result would be huge before it is made."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_numbers((left, right))
            if isinstance(right, int) and abs(right) > 64:
                raise SecurityError("the template raises to a power above 64")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "+" and isinstance(left, (str, list, tuple)):
            size = 1 if isinstance(left, str) else _ENTRY_CHARS
            budget.chars((len(left) + (len(right) if isinstance(right, (str, list, tuple)) else 0)) * size)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` without wide fields."""
        function = super().wrap_str_format(value)
        if function is None:
            return None
        inner, text = function, value.__self__

        def run(*args: Any, **kwargs: Any) -> str:
            _check_format(text, (*args, *kwargs.values()))
            return inner(*args, **kwargs)

        return run


def _check_growth(owner: str | bytes, name: str, args: tuple[Any, ...]) -> None:
    """Text methods whose result may be far longer than their input."""
    if name == "replace" and len(args) >= 2 and isinstance(args[1], (str, bytes)):
        hits = len(owner) + 1 if not args[0] else owner.count(args[0])
        budget.chars(len(owner) + hits * len(args[1]))
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        budget.chars(len(owner) * len(args[0]))
        budget.weigh(args[0])
    elif name == "expandtabs":
        size = args[0] if args and isinstance(args[0], int) else 8
        budget.chars(len(owner) * max(1, size))


def _check_product(left: Any, right: Any) -> None:
    """``text * number`` and numbers of absurd size."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
            size = _ENTRY_CHARS if isinstance(one, (list, tuple)) else 1
            budget.chars(len(one) * max(0, other) * size)
    if isinstance(left, int) and isinstance(right, int) and (left.bit_length() + right.bit_length()) > 4096:
        raise SecurityError("the template makes a number of more than 4096 bits")


def _check_format(text: str, values: Any) -> None:
    """Refuse a format with a field of five digits or more, or one that takes its width from a value."""
    if _WIDE_FIELD.search(text):
        raise SecurityError("the template formats with a field of more than 9999 characters")
    if _NESTED_FIELD.search(text):
        _check_numbers(values if isinstance(values, (list, tuple)) else (values,))


def compile_template(source: str) -> jinja2.Template:
    """Compile in the sandbox. Raises jinja2.TemplateError (TemplateSyntaxError, SecurityError)."""
    budget.reset(_COMPILE_S)
    return _SANDBOX.from_string(source)


def run_template(template: jinja2.Template, variables: Mapping[str, Any], seconds: float) -> str:
    """Render under a fresh budget. Raises whatever the template raises."""
    budget.reset(seconds)
    return template.render(variables)


_SANDBOX = Sandbox()
