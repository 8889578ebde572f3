"""Chat templates: from messages to the prompt's text, exactly as transformers renders them.

A template is code from a model's folder; :mod:`octavo.pipeline.sandbox` says what it may do. What a client
sends is first brought into the plain shape that templates are written for.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import BadRequest, ConfigError
from octavo.pipeline.messages import CONTENT_FIELD, normalise, plain
from octavo.pipeline.vocab import read_json
from octavo.types.job import ChatOptions

if TYPE_CHECKING:
    import jinja2

    from octavo.pipeline.tokenizer import Tokenizer

_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "raise_exception",
        "strftime_now",
        "namespace",
        "dict",
        "range",
        "cycler",
        "joiner",
    }
)
RENDER_S = 1.0
"""CPU time that a rendering may take where nobody says otherwise."""
_MAX_SOURCE_CHARS = 1_000_000
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_NONE_TEST = re.compile(r"\bis\s+(?:not\s+)?none\b", re.IGNORECASE)
_STRING_TEST = re.compile(r"\bis\s+(?:not\s+)?(?:string|iterable|sequence|mapping)\b")


class ChatTemplate:
    """One template, with a second one for conversations with tools where the model has it."""

    def __init__(
        self, source: str, tool_source: str | None = None, *, later: bool = False, seconds: float = RENDER_S
    ) -> None:
        """Compile now, or `later`, when it is first needed (Jinja takes longer to import than the rest).

        `seconds`: CPU time that one rendering may take. Raises BadRequest for a template that is no template;
        `later`, so does the first rendering.
        """
        self.source = source
        self.seconds = seconds
        self._tool_use = (
            ChatTemplate(tool_source, later=later, seconds=seconds) if tool_source is not None else None
        )
        self._keeps_none = bool(_NONE_TEST.search(source))
        if not later:
            self.compile()

    def compile(self) -> None:
        """Do now what the first rendering would. Raises BadRequest."""
        _ = self._template, self.content_format
        if self._tool_use is not None:
            self._tool_use.compile()

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return _compiled(self.source)

    @functools.cached_property
    def content_format(self) -> str:
        """``openai``: the template goes through a message's parts itself; ``string``: it wants one text."""
        return content_format(self.source)

    @property
    def _wants_parts(self) -> bool:
        return self.content_format == "openai" and not _STRING_TEST.search(self.source)

    @property
    def text(self) -> str:
        """All of the template's source, that for conversations with tools included."""
        return self.source + (self._tool_use.source if self._tool_use is not None else "")

    def render(
        self, messages: Sequence[Mapping[str, Any]], chat: ChatOptions, special_tokens: Mapping[str, str]
    ) -> str:
        """The prompt of a conversation as a client sent it. Raises BadRequest, also when the template does.

        `special_tokens` are the tokenizer's named tokens, which templates see as ``bos_token`` and so on.
        """
        if chat.tools and self._tool_use is not None:
            return self._tool_use.render(messages, chat, special_tokens)
        if not messages:
            raise BadRequest("There are no messages.", hint="Send at least one.", param="messages")
        if shadowed := sorted(_RESERVED.intersection(chat.kwargs)):
            raise BadRequest(
                f"chat_template_kwargs may not set {', '.join(shadowed)}.",
                hint="Use the request's field of that name where there is one.",
                param="chat_template_kwargs",
            )
        if chat.continue_final_message and chat.add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other.",
                hint="Set add_generation_prompt to false to continue the last message.",
                param="continue_final_message",
            )
        errors: list[BadRequest] = []
        # Templates differ in whether they want a tool call's arguments as data (most) or as JSON text.
        for parse_arguments in (True, False):
            shaped = normalise(
                messages,
                as_parts=self.content_format == "openai",
                wrap_strings=self._wants_parts,
                keep_none=self._keeps_none,
                parse_arguments=parse_arguments,
            )
            try:
                return self.render_plain(shaped, chat, special_tokens)
            except BadRequest as error:
                errors.append(error)
                if not isinstance(error.__cause__, TypeError):
                    break
        raise errors[0]

    def render_plain(
        self, messages: Sequence[Mapping[str, Any]], chat: ChatOptions, special_tokens: Mapping[str, str]
    ) -> str:
        """Render messages as they are, like transformers' apply_chat_template. Raises BadRequest."""
        conversation = _with_reasoning([plain(message) for message in messages])
        final = _mark_final(conversation, self.source) if chat.continue_final_message else None
        variables: dict[str, Any] = {
            **special_tokens,
            **plain(chat.kwargs),
            "messages": conversation,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        # Left undefined rather than None when absent: templates ask `if tools`, and some loop over them.
        if chat.tools is not None:
            variables["tools"] = plain(list(chat.tools))
        if chat.documents is not None:
            variables["documents"] = plain(list(chat.documents))
        text = self._run(variables)
        return text if final is None else _cut_after(text, final)

    def _run(self, variables: Mapping[str, Any]) -> str:
        """Render; every failure of the template becomes one clear error, with its cause attached."""
        from octavo.pipeline.sandbox import run_template

        template = self._template
        try:
            return run_template(template, variables, self.seconds)
        except Exception as error:
            text = str(error) or type(error).__name__
            raise BadRequest(
                f"The chat template refused the messages: {text[:500]}",
                hint="Check the order of roles and the fields of each message.",
                param="messages",
            ) from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """Compile once per text."""
    from octavo.pipeline.sandbox import compile_template

    if len(source) > _MAX_SOURCE_CHARS:
        raise BadRequest(
            f"The chat template has {len(source)} characters; the limit is {_MAX_SOURCE_CHARS}.",
            param="chat_template",
        )
    try:
        return compile_template(source)
    except Exception as error:  # besides syntax errors: recursion, arithmetic in constants
        text = str(error) or type(error).__name__
        raise BadRequest(
            f"The chat template is not valid Jinja: {text[:500]}", param="chat_template"
        ) from None


@functools.lru_cache(maxsize=16)
def content_format(source: str) -> str:
    """``openai`` when the template loops over a message's content (or a copy of it), else ``string``."""
    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import loopcontrols

    from octavo.pipeline.sandbox import GenerationTag

    try:
        tree = Environment(extensions=[loopcontrols, GenerationTag]).parse(source)
    except TemplateError:
        return "string"

    def is_content(node: nodes.Node | None) -> bool:
        while isinstance(node, (nodes.Filter, nodes.Test)):
            node = node.node
        if isinstance(node, nodes.Getattr):
            return node.attr == CONTENT_FIELD
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == CONTENT_FIELD
        return isinstance(node, nodes.Name) and node.name in aliases

    aliases: set[str] = {CONTENT_FIELD}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and is_content(assign.node):
            aliases.add(assign.target.name)
    return "openai" if any(is_content(loop.iter) for loop in tree.find_all(nodes.For)) else "string"


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _with_reasoning(messages: list[Any]) -> list[Any]:
    """Give a message's reasoning the names that templates read, as transformers does."""
    shaped = []
    for message in messages:
        reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        shaped.append(message)
    return shaped


def _mark_final(conversation: list[Any], source: str) -> str:
    """Put a mark behind the last message's text; returns that text. Raises BadRequest when there is none."""
    last = conversation[-1] = dict(conversation[-1])
    content = last.get(CONTENT_FIELD)
    if isinstance(content, list):
        parts = [dict(part) if isinstance(part, dict) else part for part in content]
        last[CONTENT_FIELD] = parts
        for part in reversed(parts):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE_TAG
                return text
    if not isinstance(content, str) or CONTENT_FIELD not in source:
        raise BadRequest(
            "continue_final_message is set, but the last message has no text to continue.",
            param="continue_final_message",
        )
    last[CONTENT_FIELD] = content + _CONTINUE_TAG
    return content


def _cut_after(text: str, final: str) -> str:
    """The rendered text up to the mark; without trailing space where the template trimmed it off."""
    mark = _CONTINUE_TAG.strip()
    at = text.rfind(mark)
    if at < 0 or final.strip() not in text:
        raise BadRequest(
            "continue_final_message is set, but the chat template does not write the last message as it is.",
            param="continue_final_message",
        )
    whole = text[at : at + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return text[:at] if whole else text[:at].rstrip()


def load_template(
    folder: str | Path | None,
    tokenizer: Tokenizer | None = None,
    user: str | None = None,
    *,
    seconds: float = RENDER_S,
) -> ChatTemplate | None:
    """The chat template of a model, None when it has none.

    `user` (``--chat-template``) wins: a Jinja file, a JSON file with the key chat_template, or the template
    itself. Then the folder's chat_template.jinja, chat_template.json, and the `tokenizer`'s own
    (tokenizer_config.json), where it may be one text or a list of named ones; these are compiled when they
    are first used. Raises ConfigError.
    """
    try:
        if user is not None:
            return ChatTemplate(_user_template(user), seconds=seconds)
        named = _folder_templates(Path(folder)) if folder is not None else {}
        if not named and tokenizer is not None:
            named = _named_templates(tokenizer.config.get("chat_template"))
        if not named:
            return None
        default = named.get("default") or next(iter(named.values()))
        return ChatTemplate(default, named.get("tool_use"), later=True, seconds=seconds)
    except BadRequest as error:
        raise ConfigError(error.message) from None


def _user_template(user: str) -> str:
    """The text that ``--chat-template`` names or is."""
    path = Path(os.path.expanduser(user))
    if not os.path.isfile(path):  # Path.is_file() raises for a template that is too long for a name
        if "{{" in user or "{%" in user or "\n" in user:
            return user
        raise ConfigError(
            f"--chat-template {user}: there is no such file, and it is no template either.",
            hint="Give a Jinja file, a JSON file with the key chat_template, or the template's text.",
        )
    text = _read(path)
    if text.lstrip().startswith("{") and not text.lstrip().startswith(("{%", "{{", "{#")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        found = _named_templates(value.get("chat_template") if isinstance(value, dict) else None)
        if not found:
            raise ConfigError(f"--chat-template {user}: the JSON file has no key chat_template.")
        return found.get("default") or next(iter(found.values()))
    return text


def _read(path: Path) -> str:
    """A template's file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The chat template {path} is not readable text: {error}.") from None


def _folder_templates(folder: Path) -> dict[str, str]:
    """Templates that stand in files of their own."""
    named: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        named["default"] = _read(folder / "chat_template.jinja")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            named[path.stem] = _read(path)
    elif (folder / "chat_template.json").is_file():
        named = _named_templates(read_json(folder / "chat_template.json").get("chat_template"))
    return named


def _named_templates(value: Any) -> dict[str, str]:
    """``chat_template`` of a JSON file by name: one text, a list of {name, template}, or an object."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping):
        return {str(name): text for name, text in value.items() if isinstance(text, str)}
    if isinstance(value, list):
        return {
            str(entry.get("name", "default")): entry["template"]
            for entry in value
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str)
        }
    return {}
