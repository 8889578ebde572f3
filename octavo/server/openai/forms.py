"""The fields of OpenAI's doors that demand a form of the answer, brought into one."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo.server.openai.requests import CommonRequest
from octavo.types.structured import StructuredOutputsParams

_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}
"""vLLM's older names."""


def structured_outputs(body: CommonRequest) -> StructuredOutputsParams | None:
    """What the answer must match: `structured_outputs`, `guided_*` or `response_format`; None: anything.

    Raises BadRequest when two of them ask for a form.
    """
    found: dict[str, dict[str, Any]] = {}
    if body.structured_outputs is not None:
        found["structured_outputs"] = _fields(body.structured_outputs)
    for name, form in _GUIDED.items():
        if (value := getattr(body, name)) not in (None, False):
            found[name] = {form: value}
    if asked := _of_response_format(body.response_format):
        found["response_format"] = asked
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest(
            f"{' and '.join(found)} each ask for a form of the answer.",
            hint="Send one.",
            param=list(found)[-1],
        )
    [(param, fields)] = found.items()
    if body.guided_whitespace_pattern is not None:
        fields.setdefault("whitespace_pattern", body.guided_whitespace_pattern)
    try:
        return StructuredOutputsParams.of(fields, param)
    except BadRequest as error:
        if param != "structured_outputs":
            error.param = param
        raise


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return dict(value)
    raise BadRequest("structured_outputs must be an object.", param="structured_outputs")


def _of_response_format(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields that a response_format stands for; None for text."""
    if value is None:
        return None
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        return {"json": _schema(value)}
    if kind == "structural_tag":
        return {"structural_tag": {name: part for name, part in value.items() if name != "type"}}
    shown = kind if isinstance(kind, str) else type(kind).__name__
    raise BadRequest(
        f"response_format has the type {shown[:40]!r}.",
        hint="There are text, json_object, json_schema and structural_tag.",
        param="response_format.type",
    )


def _schema(value: dict[str, Any]) -> Any:
    """The schema of ``{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}``."""
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, (dict, bool)) or schema is False:
        raise BadRequest(
            "response_format of the type json_schema needs json_schema.schema, an object.",
            param="response_format.json_schema.schema",
        )
    return msgspec.to_builtins(schema)
