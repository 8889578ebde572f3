"""Unknown keys of a body that look like known ones: answered all the same, with a warning."""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

from octavo.log import logger

log = logger(__name__)

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MOST_WARNED = 8
_SAME = (
    (
        "max_completion_tokens",
        "max_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "num_predict",
        "n_predict",
    ),
    ("stop", "stop_sequences", "stop_strings"),
    ("repetition_penalty", "repeat_penalty"),
)
"""Names that other APIs have for one thing."""


def misspelt(body: dict[str, Any], kind: type[msgspec.Struct]) -> str | None:
    """A warning about unknown keys that look like known ones (``max-tokens``), logged once per request.

    Other unknown keys are ignored, as clients send all sorts of things. The text is safe in a header.
    """
    known = kind.__struct_fields__
    unknown = [key for key in body if key not in known]
    found = []
    for key in unknown[:_MOST_WARNED]:
        if len(key) > 64 or not key.isascii() or not key.isprintable():
            continue
        plain = _CAMEL.sub("_", key).replace("-", "_").replace(" ", "_").lower()
        others = next((group for group in _SAME if plain in group), ())
        near = [name for name in (plain, *others) if name in known]
        near = near or difflib.get_close_matches(plain, known, n=1, cutoff=0.85)
        if near:
            found.append(f"unknown field '{key}' was ignored; did you mean '{near[0]}'?")
    if not found:
        return None
    warning = "; ".join(found)
    log.warning("a request's %s", warning)
    return warning


def warning_headers(warning: str | None) -> dict[str, str]:
    """X-Octavo-Warning where there is something to say."""
    return {"X-Octavo-Warning": warning} if warning else {}
