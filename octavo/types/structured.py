"""What a caller may demand of the form of an answer: vLLM's public `StructuredOutputsParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.errors import BadRequest

_FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class StructuredOutputsParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Exactly one of the six forms; every answer then matches it. `SamplingParams.structured_outputs`.

    Raises BadRequest for none or several of them, and for a value of the wrong kind.
    """

    json: str | dict[str, Any] | bool | None = None
    """A JSON Schema, as text or parsed; True: any JSON."""
    regex: str | None = None
    choice: list[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """GBNF or Lark."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    asked_as: str = ""
    """The field of the request that this was, for errors; empty: this one."""

    def __post_init__(self) -> None:
        """Check."""
        self.verify()

    @classmethod
    def of(cls, value: Any, param: str = "structured_outputs") -> StructuredOutputsParams:
        """From an object of this class (or the older GuidedDecodingParams) or a dict. Raises BadRequest."""
        if isinstance(value, StructuredOutputsParams):
            value.verify()
            return value
        if not isinstance(value, Mapping):
            raise BadRequest(f"{param} must be an object with one of {', '.join(_FORMS)}.", param=param)
        known = {name: given for name, given in value.items() if given is not None and name not in _IGNORED}
        for name in known:
            if name not in cls.__struct_fields__:
                raise BadRequest(
                    f"{param} has no {str(name)[:40]!r}.", hint=f"It takes {', '.join(_FORMS)}.", param=param
                )
        return cls(**{"asked_as": param, **known} if param != "structured_outputs" else known)

    def verify(self) -> None:
        """Check that there is one form, of the right kind; safe to call again."""
        if isinstance(self.choice, tuple):
            self.choice = list(self.choice)
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise BadRequest(
                f"structured_outputs takes exactly one of {', '.join(_FORMS)}, but has {found}.",
                param="structured_outputs",
            )
        name = given[0]
        value = getattr(self, name)
        if not isinstance(value, _KINDS[name]) or value == "" or value == []:
            _refuse(name, _WORDS[name])
        if name == "choice" and not all(isinstance(text, str) and text for text in value):
            _refuse(name, _WORDS[name])
        if self.whitespace_pattern is not None and not isinstance(self.whitespace_pattern, str):
            _refuse("whitespace_pattern", "a regular expression")


_IGNORED = ("backend", "_backend", "disable_fallback", "disable_any_whitespace_fallback")
"""Which library is to do it: here there is one."""

_KINDS: dict[str, tuple[type, ...]] = {
    "json": (str, dict, bool),
    "regex": (str,),
    "choice": (list,),
    "grammar": (str,),
    "json_object": (bool,),
    "structural_tag": (str, dict),
}
_WORDS = {
    "json": "a JSON Schema, as an object or as text",
    "regex": "a regular expression",
    "choice": "a list of texts that are not empty",
    "grammar": "a text in GBNF or Lark",
    "json_object": "true or false",
    "structural_tag": "an object, or its text",
}


def _refuse(name: str, allowed: str) -> None:
    raise BadRequest(f"structured_outputs.{name} must be {allowed}.", param=f"structured_outputs.{name}")


class GuidedDecodingParams(StructuredOutputsParams, kw_only=True):
    """The name and fields of older releases."""

    backend: str | None = None
    backend_was_auto: bool = False
    disable_fallback: bool = False
