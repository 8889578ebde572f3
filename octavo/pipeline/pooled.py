"""Jobs that ask for vectors, labels or scores: from texts and pairs to what the engine runs, and back."""

from __future__ import annotations

from octavo.config.pooling import Pooler
from octavo.errors import BadRequest
from octavo.pipeline.output import SequenceText
from octavo.pipeline.template import ChatTemplate
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import TokenOut
from octavo.types.job import ChatOptions, Event, Job
from octavo.types.pooling import PoolingParams, PoolingSpec

_OF_TOKENS = ("token_embed", "token_classify")


class PooledText(SequenceText):
    """The way back of a pooled sequence: one Event, which carries the result and the finish."""

    def __init__(self) -> None:
        super().__init__(0)

    def push(self, out: TokenOut) -> Event | None:
        """The event of the one output that matters."""
        if self.finished or out.finish is None:
            return None
        self.finished = True
        return Event(
            index=0,
            pooled=out.pooled,
            cached_tokens=out.cached_tokens,
            started_s=out.started_s,
            finish=out.finish,
        )


def check_kind(job: Job, pooler: Pooler | None) -> None:
    """Refuse what a model of the other kind would have to answer. Raises BadRequest."""
    if job.pooling is not None and pooler is None:
        raise BadRequest(
            "This model generates text; it makes no embeddings, labels or scores.",
            hint="Start the server with --runner pooling for those.",
            param="model",
        )
    if job.pooling is None and pooler is not None:
        makes = "embeddings" if pooler.kind == "embed" else "scores" if pooler.scores else "labels"
        raise BadRequest(
            f"This model makes {makes}; it does not generate text.",
            hint="Start the server with --runner generate, if the model can.",
            param="model",
        )


def pair_prompt(job: Job, pooler: Pooler, tokenizer: Tokenizer, template: ChatTemplate | None) -> str | None:
    """The one text that a decoder reads for the job's pair; None where the tokenizer joins the two.

    A --chat-template gets messages of the roles query and document, as vLLM's score templates do.
    """
    query, document = job.prompt or "", job.pair or ""
    if template is not None:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        return template.render(
            messages, ChatOptions(add_generation_prompt=True), tokenizer.special_tokens_map
        )
    if pooler.two_way and tokenizer.token_id("<|im_start|>") is not None:
        return _QWEN_RERANKER.format(query=query, document=document)
    return None


_QWEN_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What Qwen3-Reranker was trained to read, as its model card has it."""


def resolve(params: PoolingParams, pooler: Pooler, second_from: int | None) -> PoolingSpec:
    """Everything decided. Raises BadRequest."""
    task = params.task or pooler.tasks[0]
    if task not in pooler.tasks:
        what = "makes embeddings" if pooler.kind == "embed" else "classifies"
        raise BadRequest(
            f"This model {what}: it has no task {task!r}.",
            hint=f"It has {', '.join(pooler.tasks)}.",
            param="task",
        )
    all_rows = task in _OF_TOKENS
    activation = pooler.activation
    if params.use_activation is not None:
        default = (
            "normalize" if pooler.kind == "embed" else "sigmoid" if len(pooler.labels) == 1 else "softmax"
        )
        activation = (activation or default) if params.use_activation else ""
    return PoolingSpec(
        rows="all" if all_rows else pooler.rows,
        activation=activation,
        dimensions=_dimensions(params.dimensions, pooler),
        second_from=second_from,
        whole=pooler.encoder or (not all_rows and pooler.rows != "last"),
    )


def _dimensions(asked: int | None, pooler: Pooler) -> int | None:
    width = pooler.width
    if asked is None or asked == width:
        return None
    if pooler.kind != "embed":
        raise BadRequest("dimensions are for embeddings.", param="dimensions")
    listed = pooler.dimensions
    if asked > width or (listed and asked not in listed):
        allowed = ", ".join(map(str, listed)) if listed else f"1 to {width}"
        raise BadRequest(
            f"dimensions={asked} is not possible.", hint=f"This model has {allowed}.", param="dimensions"
        )
    return asked
