"""multipart/form-data, as browsers and OpenAI's clients send files, read from a body that is there."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple

from octavo.server.errors import SchemaError

_MOST_PARTS = 32
_MOST_HEADER_BYTES = 4096
_MOST_BOUNDARY_CHARS = 70
"""RFC 2046, 5.1.1."""


class Part(NamedTuple):
    """One field of a form."""

    filename: str | None
    content: bytes


def parse_form(body: bytes, content_type: str) -> dict[str, Part]:
    """The fields of a form by their names; the last of several with one name.

    Raises SchemaError for what is no such form.
    """
    boundary = _parameters(content_type, "multipart/form-data").get("boundary", "")
    if not 0 < len(boundary) <= _MOST_BOUNDARY_CHARS:
        raise _refused("Content-Type must be multipart/form-data with a boundary")
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(mark, _MOST_PARTS + 1)
    if len(pieces) > _MOST_PARTS + 1:
        raise _refused(f"the form has more than {_MOST_PARTS} fields")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _refused("the form does not end with its boundary")
    found: dict[str, Part] = {}
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank or len(head) > _MOST_HEADER_BYTES:
            raise _refused("a field of the form has no headers")
        told = _disposition(head)
        if "name" not in told:
            raise _refused("a field of the form has no name")
        found[told["name"]] = Part(told.get("filename"), content)
    return found


def _disposition(head: bytes) -> dict[str, str]:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _parameters(value, "form-data")
    return {}


def _parameters(value: str, kind: str) -> dict[str, str]:
    """The parameters of a header value such as ``form-data; name="file"``; none of another kind."""
    message = Message()
    message["content-type"] = value.replace("\r", " ").replace("\n", " ")
    told = message.get_params(failobj=[])
    if not told or told[0][0].strip().lower() != kind:
        return {}
    return {str(name).lower(): str(text) for name, text in told[1:]}


def _refused(why: str) -> SchemaError:
    return SchemaError(f"The form cannot be read: {why}.", param="body")
