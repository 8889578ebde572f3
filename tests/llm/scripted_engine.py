"""An engine that answers from a script, and LLM and AsyncLLM over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from octavo.config.engine import EngineConfig
from octavo.config.generation import GenerationConfig
from octavo.errors import QueueFull
from octavo.llm import LLM, AsyncLLM
from octavo.pipeline.prepare import ModelInfo, Preparer
from octavo.pipeline.service import Service
from octavo.pipeline.template import load_template
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import EngineRequest, Finish, TokenLogprobs, TokenOut
from octavo.types.sampling import SamplingParams

POCKET = Path(__file__).parents[2] / "octavo" / "assets" / "pocket"


class ScriptedEngine:
    """Answers every prompt with the tokens of `script`, one a step, at most `room` sequences at a time."""

    def __init__(self, script: Sequence[int], room: int = 1000, queue: int = 1000) -> None:
        self.script = list(script)
        self.room = room
        self.queue = queue
        self.requests: list[EngineRequest] = []
        self.live: dict[str, tuple[EngineRequest, int]] = {}
        self.aborted: list[str] = []
        self.steps = 0
        self.rests = 0
        self.on_step: Callable[[], None] = lambda: None
        self.error_at: int | None = None

    def submit(self, request: EngineRequest) -> None:
        if len(self.live) >= self.queue:
            raise QueueFull("full", retry_after_s=1.0)
        self.requests.append(request)
        self.live[request.id] = (request, 0)

    def abort(self, ids: Iterable[str]) -> None:
        for one in list(ids):
            if self.live.pop(one, None):
                self.aborted.append(one)

    def busy(self) -> bool:
        return bool(self.live)

    def rest(self) -> None:
        self.rests += 1

    def reset_prefix_cache(self) -> None:
        pass

    def step(self) -> list[TokenOut]:
        self.steps += 1
        self.on_step()
        outs = []
        for one, (request, at) in list(self.live.items())[: self.room]:
            outs.append(self._out(request, at))
            self.live[one] = (request, at + 1)
            if outs[-1].finish is not None:
                del self.live[one]
        return outs

    def _out(self, request: EngineRequest, at: int) -> TokenOut:
        token = self.script[at % len(self.script)]
        spec = request.sampling
        finish = None
        if token == spec.eos_id or token in spec.end_ids:
            finish = Finish("stop", None if token == spec.eos_id else token)
        elif at + 1 >= spec.max_tokens:
            finish = Finish("length")
        if self.error_at == at:
            finish = Finish("error", error="it broke")
        value = -0.5 - (len(request.id) + spec.seed % 7) / 10
        logprobs = (TokenLogprobs((token, 5), (value, -3.0), (1, 2)),) if spec.logprobs is not None else ()
        prompt = ()
        if spec.prompt_logprobs is not None and at == 0:
            prompt = (None, *(TokenLogprobs((i,), (-1.0,), (3,)) for i in request.prompt[1:]))
        return TokenOut(
            id=request.id,
            tokens=(token,),
            logprobs=logprobs,
            prompt_logprobs=prompt,
            cached_tokens=2,
            finish=finish,
        )


def preparer_of(tokenizer: Tokenizer, **generation: Any) -> Preparer:
    info = ModelInfo(names=("m",), max_model_len=200, vocab_size=tokenizer.vocab_size)
    return Preparer(
        tokenizer, load_template(POCKET, tokenizer, None), GenerationConfig(**generation), info, seed=0
    )


def llm_of(engine: ScriptedEngine, preparer: Preparer, **config: Any) -> LLM:
    llm = LLM.__new__(LLM)
    llm._setup(EngineConfig(**config), engine, preparer)
    return llm


def params(count: int, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, **fields)


class ThreadlessClient:
    """An EngineClient over the scripted engine that steps on the event loop."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.alive = True
        self.stalled = False

    def start(self, on_outputs: Any, on_failure: Any) -> None:
        self._on_outputs = on_outputs

    def submit(self, request: EngineRequest) -> None:
        self.engine.submit(request)
        if len(self.engine.live) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if self.engine.busy():
            self._on_outputs(self.engine.step())
            asyncio.get_running_loop().call_soon(self._turn)

    def abort(self, ids: Sequence[str]) -> None:
        self.engine.abort(ids)

    def rest(self) -> None:
        self.engine.rest()

    def reset_prefix_cache(self) -> None:
        self.engine.reset_prefix_cache()

    def stop(self, drain_s: float) -> None:
        self.alive = False


def async_llm(engine: ScriptedEngine, preparer: Preparer) -> AsyncLLM:
    llm = AsyncLLM.__new__(AsyncLLM)
    llm._setup(Service(preparer, ThreadlessClient(engine)), EngineConfig())  # type: ignore[arg-type]
    return llm


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))
