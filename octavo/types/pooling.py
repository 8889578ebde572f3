"""What a caller asks of a model that pools, and what `LLM.encode`, `embed`, `classify` and `score` hand back.

Names and fields are vLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import BadRequest
from octavo.types.sampling import RequestOutputKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TASKS = ("embed", "classify", "token_embed", "token_classify")
_OLDER_TASKS = {"encode": "token_embed", "embedding": "embed", "score": "classify"}
_UNUSED = ("step_tag_id", "returned_token_ids")


class PoolingParams(msgspec.Struct, kw_only=True, repr_omit_defaults=True):
    """How to pool one prompt. Raises BadRequest for a value that cannot be; :meth:`verify` checks again."""

    use_activation: bool | None = None
    """Whether a vector is normalised, and scores go through the model's function; None: as the model does."""
    dimensions: int | None = None
    """The first so many numbers of a vector alone, for models made for it (Kusupati et al. 2022)."""
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    """One of TASKS; None: the model's own."""
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    truncate_prompt_tokens: int | None = None
    """Keep so many tokens of the text, special ones included; -1: what the model takes."""
    normalize: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    """The three are older names of `use_activation`."""

    def __post_init__(self) -> None:
        self.verify()

    def verify(self) -> None:
        """Raises BadRequest that names the field."""
        for name in _UNUSED:
            if getattr(self, name) is not None:
                raise BadRequest(
                    f"{name} is for process reward models, which Octavo does not have.", param=name
                )
        if self.use_activation is None:
            given = [v for v in (self.normalize, self.softmax, self.activation) if v is not None]
            self.use_activation = bool(given[0]) if given else None
        self.task = _OLDER_TASKS.get(self.task or "", self.task)
        if self.task is not None and self.task not in TASKS:
            raise BadRequest(
                f"The pooling task {self.task!r:.60} is unknown.",
                hint=f"Use {', '.join(TASKS)}.",
                param="task",
            )
        for name, least in (("dimensions", 1), ("truncate_prompt_tokens", -1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least or value == 0):
                raise BadRequest(f"{name} is {value!r:.60}.", hint="Give a whole number above 0.", param=name)


class PoolingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved pooling of one sequence."""

    rows: str
    """Which hidden states: last, cls (the first), mean, or all (a result for each token)."""
    activation: str = ""
    """normalize, sigmoid, softmax, or nothing."""
    dimensions: int | None = None
    second_from: int | None = None
    """Where the tokens of a pair's second text begin, for models that tell the two apart."""
    whole: bool = False
    """The prompt is computed in one step, and none of it comes from the prefix cache."""


@dataclass(slots=True)
class PoolingOutput:
    """What the model gave: [width], or [tokens, width] for tasks of tokens."""

    data: NDArray[np.float32]


@dataclass(slots=True)
class EmbeddingOutput:
    """A vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Its width."""
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A probability for each label."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many labels."""
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts go together."""

    score: float


@dataclass(slots=True)
class PoolingRequestOutput:
    """One prompt's result: `outputs` is a PoolingOutput, and in the classes below what their name says."""

    request_id: str
    outputs: Any
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class EmbeddingRequestOutput(PoolingRequestOutput):
    """`outputs` is an EmbeddingOutput."""


class ClassificationRequestOutput(PoolingRequestOutput):
    """`outputs` is a ClassificationOutput."""


class ScoringRequestOutput(PoolingRequestOutput):
    """`outputs` is a ScoringOutput."""
