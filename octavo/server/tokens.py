"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.limits import check_ids, check_messages, check_template
from octavo.server.state import State
from octavo.server.wire import convert, read_object, reply
from octavo.types.job import ChatOptions, Started


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /tokenize: either `prompt` or `messages` with the chat template's options."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a prompt, false for messages."""
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class TokenizeReply(msgspec.Struct):
    """Body of the reply."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class DetokenizeReply(msgspec.Struct):
    """Body of the reply."""

    prompt: str


def routes(state: State) -> list[Route]:
    """The two routes, and the third where --enable-tokenizer-info-endpoint asks for it."""

    async def tokenize(request: Request) -> Response:
        raw = await read_object(request, state.settings)
        body = convert(raw, TokenizeRequest)
        state.choose(body.model)
        started = await _tokens(body, state)
        strings = None
        if body.return_token_strs:
            vocabulary = state.vocabulary
            strings = [(vocabulary.token(i) if vocabulary else None) or "" for i in started.prompt_ids]
        ids = list(started.prompt_ids)
        return reply(TokenizeReply(len(ids), state.service.info.max_model_len, ids, strings))

    async def detokenize(request: Request) -> Response:
        raw = await read_object(request, state.settings)
        body = convert(raw, DetokenizeRequest)
        state.choose(body.model)
        check_ids("tokens", body.tokens)
        return reply(DetokenizeReply(await state.service.detokenize(body.tokens)))

    async def info(request: Request) -> Response:
        template, tokenizer = state.service.preparer.template, state.vocabulary
        if tokenizer is None:
            raise BadRequest("There is no tokenizer (--skip-tokenizer-init).")
        shown = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.config}
        return reply({**shown, "chat_template": template.source if template is not None else None})

    found = [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]
    if state.settings.enable_tokenizer_info:
        found.append(Route("/tokenizer_info", info, methods=["GET"]))
    return found


async def _tokens(body: TokenizeRequest, state: State) -> Started:
    """The text and ids. Raises BadRequest."""
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("Send either prompt or messages.", param="prompt")
    if body.messages is None:
        special = body.add_special_tokens is not False
        return await state.service.tokenize(prompt=body.prompt, add_special_tokens=special)
    check_messages(body.messages, state.settings)
    check_template(body.chat_template, state.settings)
    if body.continue_final_message and body.add_generation_prompt:
        raise BadRequest(
            "continue_final_message and add_generation_prompt cannot both be true.",
            param="continue_final_message",
        )
    options = ChatOptions(
        template=body.chat_template,
        tools=tuple(body.tools) if body.tools else None,
        kwargs=body.chat_template_kwargs or {},
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
    )
    return await state.service.tokenize(messages=body.messages, chat=options)
