"""What `LLM` does besides answering: sleep, caches, metrics, a profile, calls to workers that it has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from octavo.errors import BadRequest, OctavoError
from octavo.log import logger

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig
    from octavo.engine.core import Engine
    from octavo.llm.loop import Loop
    from octavo.llm.metrics import Recorded
    from octavo.pipeline.prepare import Preparer
    from octavo.types.metrics import Metric
    from octavo.types.stats import EngineStats

log = logger(__name__)

_STEP_PARTS = ("schedule_s", "arrays_s", "forward_s", "sample_s", "commit_s")


class NotHere(OctavoError, NotImplementedError):
    """A call of vLLM's that has no meaning here; the message says why and what there is instead."""

    kind = "NotImplementedError"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of vLLM's `model_config` that scripts read."""

    model: str
    tokenizer: str
    dtype: str
    seed: int
    max_model_len: int
    max_logprobs: int
    served_model_name: str
    vocab_size: int

    def get_vocab_size(self) -> int:
        """Rows of the model's output."""
        return self.vocab_size


def model_config(config: EngineConfig, preparer: Preparer) -> ModelConfig:
    """From what an offline class knows."""
    info = preparer.info
    return ModelConfig(
        model=info.root or info.name,
        tokenizer=config.tokenizer or info.root or info.name,
        dtype=config.dtype,
        seed=config.seed,
        max_model_len=info.max_model_len,
        max_logprobs=info.max_logprobs,
        served_model_name=info.name,
        vocab_size=info.vocab_size,
    )


def supported_tasks(preparer: Preparer) -> tuple[str, ...]:
    """What the model can do, in vLLM's words."""
    return preparer.pooler.tasks if preparer.pooler is not None else ("generate",)


class Profile:
    """Where the time of steps went between two moments."""

    def __init__(self) -> None:
        self._begun: EngineStats | None = None

    def start(self, stats: EngineStats) -> None:
        """Begin, or begin again."""
        self._begun = stats

    def stop(self, stats: EngineStats) -> None:
        """Log one line. Raises OctavoError when it was not begun."""
        if self._begun is None:
            raise OctavoError("No profile was started.", hint="Call start_profile() first.")
        begun, self._begun = self._begun, None
        spent = {part: getattr(stats, part) - getattr(begun, part) for part in _STEP_PARTS}
        whole = sum(spent.values())
        shares = ", ".join(
            f"{part.removesuffix('_s')} {1e3 * seconds:.1f} ms ({100 * seconds / max(whole, 1e-9):.0f} %)"
            for part, seconds in spent.items()
        )
        log.info(
            "Profile: %d steps of %d tokens, %.3f s: %s.",
            stats.steps_total - begun.steps_total,
            stats.step_tokens_total - begun.step_tokens_total,
            whole,
            shares,
        )


def refuse_rpc(method: str | Callable[..., Any]) -> NoReturn:
    """There are no workers. Raises NotHere."""
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    raise NotHere(
        f"collective_rpc({name!r}) calls a method of vLLM's workers; Octavo has none, its engine runs here.",
        hint=f"These names work: {', '.join(sorted(RPC))}.",
    )


RPC = frozenset(
    {
        "reset_prefix_cache",
        "reset_mm_cache",
        "sleep",
        "wake_up",
        "start_profile",
        "stop_profile",
        "check_health",
    }
)
"""Methods of workers that the offline classes have themselves."""


def check_level(level: int) -> None:
    """Refuse levels of sleep that vLLM does not have either."""
    if level not in (0, 1, 2):
        raise BadRequest(f"level={level!r} is none.", hint="Use 1 or 2.", param="level")


class ControlCalls:
    """The part of `LLM` that answers no prompt."""

    config: EngineConfig
    _engine: Engine
    _loop: Loop
    _preparer: Preparer
    _recorded: Recorded
    _profile: Profile

    @property
    def model_config(self) -> ModelConfig:
        """What scripts read of vLLM's."""
        return model_config(self.config, self._preparer)

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """generate, or what a model that pools gives."""
        return supported_tasks(self._preparer)

    def get_metrics(self) -> list[Metric]:
        """The series that ``/metrics`` of a server has, but for times between tokens."""
        return self._recorded.metrics(self._engine.stats(), self._preparer.info.name)

    def get_world_size(self, include_dp: bool = True) -> int:
        """1: one process is at work."""
        return 1

    def check_health(self) -> None:
        """Nothing: an engine that failed raises from the call that it failed."""

    def start_profile(self, profile_prefix: str | None = None) -> None:
        """Begin to measure what steps spend their time with; `profile_prefix` has no effect."""
        self._profile.start(self._engine.stats())

    def stop_profile(self) -> None:
        """Log it, in one line."""
        self._profile.stop(self._engine.stats())

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """The answer, in a list, of a worker's method that this class has too. Raises NotHere for others."""
        if not isinstance(method, str) or method not in RPC:
            refuse_rpc(method)
        return [getattr(self, method)(*args, **(kwargs or {}))]

    def apply_model(self, func: Callable[..., Any]) -> NoReturn:
        """Refused: the model is a plan over packed weights, no module of PyTorch. Raises NotHere."""
        raise NotHere(
            "apply_model needs a model of PyTorch modules; Octavo's is a plan over packed weights.",
            hint="`octavo inspect` shows its parts; SamplingParams(logits_processors=...) changes logits.",
        )

    def reset_prefix_cache(self, *_: Any, **__: Any) -> bool:
        """Forget cached prompts."""
        self._engine.reset_prefix_cache()
        return True

    def reset_mm_cache(self) -> None:
        """Nothing: no images or sounds are kept."""

    def reset_encoder_cache(self) -> None:
        """Nothing: no images or sounds are kept."""

    def sleep(self, level: int = 1, *_: Any, **__: Any) -> None:
        """Give the KV cache's memory back; nothing is answered until `wake_up()`. The weights stay, always.

        Raises OctavoError while requests run.
        """
        check_level(level)
        if self._engine.busy():
            raise OctavoError(
                "Requests are running.", hint="Read or close the iterators of stream=True first."
            )
        self._loop.asleep = True
        self._engine.rest()

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Answer again; `tags` have no effect, as all of it wakes at once."""
        self._loop.asleep = False

    def is_sleeping(self) -> bool:
        """Whether `sleep` was called and `wake_up` not yet."""
        return self._loop.asleep

    def release_kv_cache_memory(self) -> None:
        """Give the KV cache's memory back, cached prompts with it, unless requests run."""
        self._engine.rest()
