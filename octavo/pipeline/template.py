"""Chat templates: Jinja in its immutable sandbox, rendering exactly as transformers does.

A template is code from a model's folder. It runs without access to attributes, with plain JSON data only, and
under limits on steps, on the size of what it writes, and on time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import BadRequest
from octavo.types.job import ChatOptions


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Compile `source`. Raises BadRequest for a syntax error."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadRequest(f"The chat template is not valid: {error}.", param="chat_template") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], chat: ChatOptions, special_tokens: Mapping[str, str]
    ) -> str:
        """The prompt text of a conversation. Raises BadRequest."""
        from jinja2 import TemplateError

        variables = {
            **special_tokens,
            **chat.kwargs,
            "messages": list(messages),
            "tools": chat.tools,
            "documents": chat.documents,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except TemplateError as error:
            raise BadRequest(f"The chat template refused the messages: {error}.", param="messages") from None
