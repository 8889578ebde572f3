"""POST /v1/chat/completions: messages in, one or more assistant messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.limits import at_most, check_effort, check_messages, check_template, named_as
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.openai.common import (
    Head,
    UsageRules,
    check_ceilings,
    head,
    metrics_info,
    refuse_unsupported,
    sampling_params,
    usage_info,
)
from octavo.server.openai.logprobs import Speller, chat_logprobs, prompt_logprobs
from octavo.server.openai.replies import (
    FINGERPRINT,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatReply,
    Delta,
    Message,
    ToolCall,
)
from octavo.server.openai.requests import ChatRequest
from octavo.server.runs import Answer, Call, Run, collect
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.server.wire import (
    SSE_DONE,
    Stream,
    convert,
    read_object,
    reply,
    request_name,
    salted,
    unless_gone,
)
from octavo.types.engine import Finish
from octavo.types.job import ChatOptions, Event, Job
from octavo.types.sampling import SamplingParams

_ENCODE = msgspec.json.Encoder().encode


def routes(state: State) -> list[Route]:
    """The chat door's route."""

    async def chat(request: Request) -> Response:
        return await unless_gone(request, _answer(request, state))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


async def _answer(request: Request, state: State) -> Response:
    """The whole life of a request. Raises OctavoError for what cannot be."""
    settings = state.settings
    raw = await read_object(request, settings)
    body = convert(raw, ChatRequest)
    model, adapter = state.choose(body.model)
    top = head("chatcmpl", request_name(request, body.request_id), model)
    job = parse(body, state, top, salted(request, body.cache_salt))
    job = msgspec.structs.replace(job, adapter=adapter)
    headers = warning_headers(misspelt(raw, ChatRequest))
    chat = Chat(state, body, top)
    run = await Run.begin(state, [job], "/v1/chat/completions", streaming=bool(body.stream))
    if body.stream:
        return Stream(chat.chunks(run), settings, on_close=run.close, headers=headers)
    async with run:
        response = reply(chat.reply(run, await collect(run)))
    response.headers.update(headers)
    return response


class Chat:
    """One conversation's answers, rendered."""

    def __init__(self, state: State, body: ChatRequest, top: Head) -> None:
        self._state = state
        self._settings = state.settings
        self._body = body
        self._head = top

    @property
    def _role(self) -> str:
        """Who answers: the server's role, or the last message's when that is continued."""
        if self._body.add_generation_prompt is not False:
            return self._settings.response_role
        return str(self._body.messages[-1]["role"])

    @property
    def _echo(self) -> str:
        """The text of the message that is continued, when the client wants it back."""
        last = self._body.messages[-1]
        content = last.get("content")
        if not self._body.echo or last["role"] != self._role or not content:
            return ""
        if isinstance(content, str):
            return content
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)

    @property
    def _as_ids(self) -> bool:
        asked = self._body.return_tokens_as_token_ids
        return self._settings.return_tokens_as_token_ids if asked is None else asked

    def reply(self, run: Run, answers: list[Answer]) -> ChatReply:
        """The body of a reply that is not streamed."""
        body, started = self._body, run.started[0]
        shown = [entry for event in answers[0].events for entry in event.prompt_logprobs]
        wanted = body.prompt_logprobs is not None
        return ChatReply(
            **msgspec.structs.asdict(self._head),
            choices=[self.choice(i, answer) for i, answer in enumerate(answers)],
            usage=usage_info(run.usage, self._settings),
            prompt_logprobs=prompt_logprobs(shown, self._state.vocabulary) if wanted else None,
            prompt_token_ids=list(started.prompt_ids) if body.return_token_ids else None,
            prompt_text=started.prompt if body.return_prompt_text else None,
            metrics=metrics_info(run, body, self._settings),
        )

    def choice(self, index: int, answer: Answer) -> ChatChoice:
        """One answer."""
        body, finish = self._body, answer.finish
        assert finish is not None
        logprobs = None
        if body.logprobs:
            entries = [entry for event in answer.events for entry in event.logprobs]
            speller = Speller(self._state.vocabulary, self._as_ids)
            logprobs = chat_logprobs(entries, _top(body), speller)
        return ChatChoice(
            index=index,
            message=self._message(answer),
            logprobs=logprobs,
            finish_reason=finish_reason(body, finish, bool(answer.calls)),
            stop_reason=finish.stop_reason,
            token_ids=answer.tokens if body.return_token_ids else None,
        )

    def _message(self, answer: Answer) -> Message:
        """The assistant's message; content is null where there is only reasoning, or only calls."""
        text = self._echo + answer.text
        reasoning = answer.reasoning if self._body.include_reasoning is not False else ""
        return Message(
            role=self._role,
            content=text if text or not (answer.reasoning or answer.calls) else None,
            reasoning=reasoning or None,
            reasoning_content=reasoning or None,
            tool_calls=[_call(call) for call in answer.calls.values()] or UNSET,
        )

    async def chunks(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The stream: a role chunk per choice, then the news, then usage where it is wanted."""
        body, settings = self._body, self._settings
        rules = UsageRules.of(body, settings)
        make = ChunkMaker(self._head, body, self._state, self._as_ids, run.choices, rules)
        start = Delta(role=self._role, content="")
        for index in range(run.choices):
            chunk = make.chunk(ChatChunkChoice(index=index, delta=start))
            started = run.started[0]
            chunk.prompt_token_ids = list(started.prompt_ids) if body.return_token_ids else None
            if body.return_prompt_text:
                chunk.prompt_text = started.prompt
            if rules.every:
                chunk.usage = usage_info(run.usage, settings)
            yield _line(chunk)
            if self._echo:
                said = ChatChunkChoice(index=index, delta=Delta(content=self._echo))
                yield _line(make.chunk(said))
        async for index, event in run.events():
            for chunk in make.news(index, event):
                if rules.every:
                    chunk.usage = usage_info(run.usage, settings)
                yield _line(chunk)
        if rules.last:
            chunk = make.chunk(None)
            chunk.usage = usage_info(run.usage, settings)
            chunk.metrics = metrics_info(run, body, settings) or UNSET
            yield _line(chunk)
        yield SSE_DONE


class ChunkMaker:
    """Turns events into chunks; cheap, as it runs once per token."""

    def __init__(
        self, head: Head, body: ChatRequest, state: State, as_ids: bool, choices: int, rules: UsageRules
    ) -> None:
        self._head = head
        self._body = body
        self._ids = body.return_token_ids
        self._top = _top(body) if body.logprobs else None
        self._spellers = [Speller(state.vocabulary, as_ids) for _ in range(choices)] if body.logprobs else []
        self._called: set[int] = set()
        """Choices that have called a tool."""
        told = rules.every or body.logprobs or self._ids
        self._quiet = not told and bool(body.tools or body.include_reasoning is False)
        """Tokens that bring nothing yet (the mark of a call, a thought that is not told) have no chunk."""

    def chunk(self, choice: ChatChunkChoice | None) -> ChatChunk:
        """A chunk of one choice or of none."""
        top = self._head
        choices = [] if choice is None else [choice]
        return ChatChunk(id=top.id, created=top.created, model=top.model, choices=choices)

    def news(self, index: int, event: Event) -> list[ChatChunk]:
        """The chunks of one event: one, and another for each further piece of a tool call."""
        deltas = self._deltas(event)
        if not deltas and self._quiet and event.finish is None:
            return []
        deltas = deltas or [Delta(content="")]
        if event.calls:
            self._called.add(index)
        chunks = [self.chunk(ChatChunkChoice(index=index, delta=delta, token_ids=None)) for delta in deltas]
        first, last = chunks[0].choices[0], chunks[-1].choices[0]
        if self._ids:
            first.token_ids = list(event.tokens)
        if self._top is not None and event.logprobs:
            first.logprobs = chat_logprobs(event.logprobs, self._top, self._spellers[index])
        if event.finish is not None:
            last.finish_reason = finish_reason(self._body, event.finish, index in self._called)
            last.stop_reason = event.finish.stop_reason
            chunks[-1].system_fingerprint = FINGERPRINT
        return chunks

    def _deltas(self, event: Event) -> list[Delta]:
        """What is new, in the order in which a reply has it."""
        found = []
        if event.reasoning and self._body.include_reasoning is not False:
            found.append(Delta(reasoning=event.reasoning, reasoning_content=event.reasoning))
        if event.text:
            found.append(Delta(content=event.text))
        for piece in event.calls:
            if piece.name:
                function = CalledFunction(name=piece.name, arguments="")
                call = ToolCall(index=piece.index, id=piece.id, type="function", function=function)
                found.append(Delta(tool_calls=[call]))
            if piece.arguments:
                more = CalledFunction(arguments=piece.arguments)
                found.append(Delta(tool_calls=[ToolCall(index=piece.index, function=more)]))
        return found


def finish_reason(body: ChatRequest, finish: Finish, called: bool) -> str:
    """OpenAI's word for how a choice ended; a call that was asked for by name is no news."""
    named = isinstance(body.tool_choice, dict)
    return "tool_calls" if called and not named and finish.reason == "stop" else finish.reason


def _call(call: Call) -> ToolCall:
    """A whole call."""
    return ToolCall(
        id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments)
    )


def _line(chunk: ChatChunk) -> bytes:
    """One data line."""
    return b"data: " + _ENCODE(chunk) + b"\n\n"


def _top(body: ChatRequest) -> int:
    """How many of a position's tokens are shown; -1: all that there are."""
    return -1 if body.logprob_token_ids else body.top_logprobs or 0


def parse(body: ChatRequest, state: State, head: Head, salt: str) -> Job:
    """The job that a body asks for. Raises BadRequest."""
    settings = state.settings
    refuse_unsupported(body)
    check_ceilings(body, settings, prompts=1)
    check_messages(body.messages, settings)
    _check_tools(body, settings)
    _check_options(body, settings)
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
        most = state.service.info.max_logprobs
        if 0 <= most < logprobs:
            raise BadRequest(
                f"top_logprobs={logprobs} is more than {most}.",
                hint=f"Start with --max-logprobs {logprobs} to allow it.",
                param="top_logprobs",
            )
    return Job(
        id=head.id,
        sampling=_sampling(body, state, logprobs),
        messages=tuple(body.messages),
        chat=chat_options(body, settings),
        truncation_side=body.truncation_side,
        priority=body.priority or 0,
        salt=salt,
        model=head.model,
    )


def _sampling(body: ChatRequest, state: State, logprobs: int | None) -> SamplingParams:
    """How tokens are drawn. Raises BadRequest, which names max_tokens as the client did."""
    newer = body.max_completion_tokens is not None
    limit = body.max_completion_tokens if newer else body.max_tokens
    with named_as("max_completion_tokens" if newer else "max_tokens", "max_tokens"):
        return sampling_params(
            body, state, max_tokens=limit, logprobs=logprobs, prompt_logprobs=body.prompt_logprobs
        )


def chat_options(body: ChatRequest, settings: ServerSettings) -> ChatOptions:
    """How the messages are to be rendered, and the reply to be taken apart."""
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
        if body.reasoning_effort == "none":  # few templates know efforts, most know one of these
            kwargs.setdefault("enable_thinking", False)
            kwargs.setdefault("thinking", False)
    choice, name = tool_choice(body.tool_choice)
    hidden = choice == "none" and settings.exclude_tools_when_none
    return ChatOptions(
        template=body.chat_template,
        tools=tuple(body.tools) if body.tools and not hidden else None,
        documents=tuple(body.documents) if body.documents else None,
        kwargs=kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        parse=True,
        whole=not body.stream,
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )


def tool_choice(asked: str | dict[str, Any] | None) -> tuple[str, str]:
    """(auto, none, required or named; the function's name when named). Raises BadRequest."""
    if asked is None:
        return "auto", ""
    if asked in ("auto", "none", "required"):
        return str(asked), ""
    function = asked.get("function") if isinstance(asked, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]:
        return "named", function["name"]
    raise BadRequest(
        "tool_choice must be 'none', 'auto', 'required' or a named function.",
        hint='A named one is {"type": "function", "function": {"name": ...}}.',
        param="tool_choice",
    )


def _check_tools(body: ChatRequest, settings: ServerSettings) -> None:
    """The tools and the choice among them. Raises BadRequest."""
    if body.tools is not None:
        at_most("tools", len(body.tools), settings.max_tools, "tools")
        if not body.tools:
            raise BadRequest("tools is empty.", hint="Leave it out.", param="tools")
    names = [_tool_name(tool, f"tools.{i}") for i, tool in enumerate(body.tools or ())]
    choice, name = tool_choice(body.tool_choice)
    if body.tool_choice is None or choice == "none":
        return
    if not names:
        raise BadRequest(f"tool_choice is {choice!r}, but there are no tools.", param="tool_choice")
    if choice == "named" and name not in names:
        raise BadRequest(
            f"tool_choice names {name[:64]!r}, which is not among the tools.", param="tool_choice"
        )


def _tool_name(tool: dict[str, Any], where: str) -> str:
    """The name of an offered function. Raises BadRequest."""
    kind = tool.get("type", "function")
    if kind != "function":
        raise BadRequest(
            f"{where} is of the type {str(kind)[:40]!r}; tools are functions here.", param=f"{where}.type"
        )
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest(
            f"{where} has no function with a name.",
            hint='Send {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
            param=where,
        )
    if not isinstance(function.get("parameters") or {}, dict):
        raise BadRequest(
            f"{where}.function.parameters must be a JSON Schema object.", param=f"{where}.function.parameters"
        )
    return name


def _check_options(body: ChatRequest, settings: ServerSettings) -> None:
    """Rules between fields."""
    check_template(body.chat_template, settings)
    check_effort("reasoning_effort", body.reasoning_effort)
    if body.continue_final_message and body.add_generation_prompt is not False:
        raise BadRequest(
            "continue_final_message and add_generation_prompt cannot both be true.",
            hint='Send "add_generation_prompt": false.',
            param="continue_final_message",
        )
    if body.logprob_token_ids and not body.logprobs:
        raise BadRequest('logprob_token_ids needs "logprobs": true.', param="logprob_token_ids")
    if body.top_logprobs and not body.logprobs:
        raise BadRequest('top_logprobs needs "logprobs": true.', param="top_logprobs")
    if body.top_logprobs is not None and body.top_logprobs < -1:
        raise BadRequest("top_logprobs must be at least 0, or -1 for all.", param="top_logprobs")
    if body.stream and body.prompt_logprobs is not None and body.prompt_logprobs != 0:
        raise BadRequest("prompt_logprobs cannot be streamed.", param="prompt_logprobs")
    if body.modalities and body.modalities != ["text"]:
        raise BadRequest("modalities: this server answers with text only.", param="modalities")
