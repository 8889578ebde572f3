"""What the doors need of the text side: protocols that pipeline's Service and the tests' fake satisfy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from octavo.pipeline.stop import EndTokens
from octavo.types.facts import ModelFacts
from octavo.types.job import ChatOptions, Event, Job, Started
from octavo.types.lora import Adapter
from octavo.types.sampling import SamplingParams
from octavo.types.stats import EngineStats


class Info(Protocol):
    """What is served."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use; the first is reported."""

    @property
    def root(self) -> str:
        """The folder or id that the model was loaded from; may be empty."""

    @property
    def max_model_len(self) -> int:
        """Context length in tokens."""

    @property
    def max_logprobs(self) -> int:
        """Most log-probabilities a token that a request may ask for; -1 for no limit."""

    @property
    def logprobs_mode(self) -> str:
        """What log-probabilities are: raw_logprobs are the model's own."""

    @property
    def created(self) -> int:
        """Unix time at which the model was loaded, in seconds."""

    @property
    def facts(self) -> ModelFacts:
        """What the model is."""


class Generation(Protocol):
    """The model's own sampling defaults."""

    def apply(self, fields: Mapping[str, Any]) -> SamplingParams:
        """Sampling from the fields that a client set; None counts as unset. Raises BadRequest."""


class Template(Protocol):
    """A chat template, to be looked at."""

    @property
    def source(self) -> str:
        """Its text."""


class PoolerInfo(Protocol):
    """What a model of vectors or labels makes of a text (config.pooling.Pooler)."""

    @property
    def kind(self) -> str:
        """embed or classify."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's."""

    @property
    def scores(self) -> bool:
        """Whether it reads pairs."""

    @property
    def prompts(self) -> tuple[tuple[str, str], ...]:
        """(name, text) of what stands before texts of some purpose."""


class Preparing(Protocol):
    """The part of the preparer that doors use."""

    @property
    def pooler(self) -> PoolerInfo | None:
        """How the model pools; None for one that generates."""

    @property
    def generation(self) -> Generation:
        """Defaults for fields that requests leave out."""

    @property
    def template(self) -> Template | None:
        """The chat template; None where the model has none."""

    @property
    def ends(self) -> EndTokens:
        """The tokens that end an answer."""


class Vocabulary(Protocol):
    """Single tokens as text."""

    @property
    def config(self) -> Mapping[str, Any]:
        """tokenizer_config.json."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that one token stands for; None where that depends on its neighbours."""

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, None for an unknown id."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""


class JobEvents(Protocol):
    """A job at work: Started, then Events until each sequence had its finish. Closing early aborts it."""

    def __aiter__(self) -> AsyncIterator[Started | Event]: ...

    async def __anext__(self) -> Started | Event:
        """The next event."""

    async def aclose(self) -> None:
        """Stop caring."""


class NamedAdapter(Protocol):
    """One adapter as it was given."""

    @property
    def adapter(self) -> Adapter: ...

    @property
    def path(self) -> str:
        """As written."""

    @property
    def base(self) -> str | None:
        """The base model's name, when one was said."""


class Adapters(Protocol):
    """Names to LoRA adapters (lora.registry.Adapters)."""

    def list(self) -> Sequence[NamedAdapter]:
        """In the order in which they were added."""

    def find(self, name: str, /) -> Adapter | None:
        """The adapter of that name."""

    def add(self, name: str, path: str, /, *, in_place: bool = False) -> Adapter:
        """Read one; takes as long as reading takes. Raises NotFound, BadRequest, AdapterError."""

    def remove(self, name: str, /) -> None:
        """Forget a name. Raises NotFound."""


class Hub(Protocol):
    """The service behind every door."""

    @property
    def ready(self) -> bool:
        """Whether a job handed in now would be worked on."""

    @property
    def failure(self) -> str | None:
        """Why the engine died; None while it lives."""

    @property
    def info(self) -> Info:
        """The model's names and limits."""

    @property
    def preparer(self) -> Preparing:
        """Where defaults come from."""

    @property
    def adapters(self) -> Adapters | None:
        """The LoRA adapters; None without --enable-lora."""

    @property
    def tokenizer(self) -> Vocabulary | None:
        """None when the server runs without a tokenizer."""

    async def submit(self, job: Job) -> JobEvents:
        """Hand in a job. Raises OctavoError when it is refused."""

    def abort(self, job_id: str) -> object:
        """Stop a job; unknown ids do nothing."""

    def stats(self) -> EngineStats:
        """A snapshot of the engine."""

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts, soon."""

    def rest(self) -> None:
        """Forget them and give back the memory of a KV cache that nothing uses, soon."""

    async def tokenize(
        self,
        *,
        prompt: str | None = None,
        messages: Sequence[dict[str, object]] | None = None,
        chat: ChatOptions | None = None,
        add_special_tokens: bool = True,
    ) -> Started:
        """Text and ids of a prompt or of messages, as a job would run them."""

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included. Raises BadRequest for an id outside the vocabulary."""

    async def start(self) -> None:
        """Begin working; call once, on the event loop that will serve."""

    async def stop(self, drain_s: float) -> None:
        """Let running jobs finish for at most `drain_s` seconds, then end."""
