"""What the pooling doors share: checks before any work, jobs, results, counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from octavo.errors import BadRequest, Unavailable
from octavo.server.hub import PoolerInfo
from octavo.server.limits import at_most, check_ids, check_messages, check_order, check_template
from octavo.server.pooling.bodies import InputBody, PoolingBody, PoolingUsage
from octavo.server.runs import Run, Usage
from octavo.server.state import State
from octavo.server.wire import request_name, salted
from octavo.types.job import ChatOptions, Job
from octavo.types.pooling import PoolingParams
from octavo.types.sampling import SamplingParams


class Work:
    """One request to a pooling door: its names, its jobs, its counts."""

    def __init__(self, request: Request, body: PoolingBody, state: State, prefix: str) -> None:
        """Raises BadRequest for a model that generates, and for what no such request may say."""
        self.state = state
        self.model, self._adapter = state.choose(body.model)
        self.pooler = pooler_of(state)
        self.id = f"{prefix}-{request_name(request, body.request_id)}"
        self.created = int(time.time())
        self.usage = Usage(0)
        self._body = body
        self._salt = salted(request, body.cache_salt)
        check_order(body.priority, body.cache_salt)
        if body.truncation_side not in (None, "right"):
            raise BadRequest(
                "truncation_side must be 'right': texts are cut at their end.", param="truncation_side"
            )

    def params(self, task: str | None, dimensions: int | None = None) -> PoolingParams:
        """The request's pooling."""
        body = self._body
        return PoolingParams(
            task=task,
            dimensions=dimensions,
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            use_activation=body.use_activation,
            normalize=body.normalize,
            softmax=body.softmax,
            activation=body.activation,
        )

    def job(self, params: PoolingParams, **more: Any) -> Job:
        """One job of the request; `more` says what it reads."""
        return Job(
            id=self.id,
            sampling=SamplingParams(),
            pooling=params,
            priority=self._body.priority or 0,
            salt=self._salt,
            model=self.model,
            adapter=self._adapter,
            add_special_tokens=self._body.add_special_tokens is not False,
            **more,
        )

    def jobs(self, body: InputBody, params: PoolingParams) -> list[Job]:
        """The jobs of `input` or `messages`."""
        if (body.input is None) == (body.messages is None):
            raise BadRequest("Send either input or messages.", param="input")
        if body.messages is not None:
            return [self.job(params, messages=tuple(body.messages), chat=self._chat(body))]
        inputs = body.input
        if isinstance(inputs, str):
            return [self.job(params, prompt=inputs)]
        if not inputs:
            raise BadRequest("input is empty.", hint="Send text or token ids.", param="input")
        numbers = [one for one in inputs if isinstance(one, int)]
        if numbers:
            if len(numbers) < len(inputs):
                raise BadRequest("input mixes token ids with texts.", param="input")
            inputs = [numbers]
        at_most("input", len(inputs), self.state.settings.max_prompts, "texts")
        made = []
        for one in inputs:
            if isinstance(one, str):
                made.append(self.job(params, prompt=one))
            elif isinstance(one, list):
                if not one:
                    raise BadRequest(
                        "input holds an empty list.", hint="Send at least one id.", param="input"
                    )
                check_ids("input", one)
                made.append(self.job(params, prompt_ids=tuple(one)))
        return made

    def _chat(self, body: InputBody) -> ChatOptions:
        check_messages(body.messages or [], self.state.settings)
        check_template(body.chat_template, self.state.settings)
        return ChatOptions(
            template=body.chat_template,
            kwargs=body.chat_template_kwargs or {},
            add_generation_prompt=bool(body.add_generation_prompt) and not body.continue_final_message,
            continue_final_message=bool(body.continue_final_message),
            add_special_tokens=self._body.add_special_tokens is not False,
        )

    async def run(self, jobs: Sequence[Job]) -> list[Any]:
        """Each job's result, float32 arrays. Raises OctavoError."""
        found: list[Any] = [None] * len(jobs)
        async with await Run.begin(self.state, jobs) as run:
            async for choice, event in run.events():
                found[choice] = event.pooled if event.pooled is not None else found[choice]
        self.usage = run.usage
        if any(one is None for one in found):
            raise Unavailable("The server stopped before the answer was finished.")
        return found

    def counts(self) -> PoolingUsage:
        """Of all jobs so far."""
        usage = self.usage
        shown = self.state.settings.enable_prompt_tokens_details and usage.cached
        return PoolingUsage(
            prompt_tokens=usage.prompt,
            total_tokens=usage.prompt,
            prompt_tokens_details={"cached_tokens": usage.cached} if shown else None,
        )


def pooler_of(state: State) -> PoolerInfo:
    """The model's way of pooling. Raises BadRequest for a model that generates."""
    found = state.service.preparer.pooler
    if found is None:
        raise BadRequest(
            "This model generates text; it makes no embeddings, labels or scores.",
            hint="Start the server with --runner pooling for those.",
            param="model",
        )
    return found
