"""`LLM.beam_search`: every step of every prompt's search in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError
from octavo.llm.collect import TokenBytes, TokenTexts, logprob_dict
from octavo.pipeline.beam import Beam, Hypothesis, check, ends_of, step_params
from octavo.types.beam import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
from octavo.types.engine import TokenLogprobs
from octavo.types.job import Event, Job
from octavo.types.lora import LoRARequest
from octavo.types.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.llm.loop import Loop
    from octavo.pipeline.prepare import Prepared, Preparer


def sampling_of(params: BeamSearchParams) -> SamplingParams:
    """The same wish in the words of a request."""
    return SamplingParams(
        n=params.beam_width,
        max_tokens=params.max_tokens,
        ignore_eos=params.ignore_eos,
        length_penalty=params.length_penalty,
        include_stop_str_in_output=params.include_stop_str_in_output,
        skip_special_tokens=params.skip_special_tokens,
        use_beam_search=True,
    )


def search(
    jobs: Sequence[Job],
    lora: Sequence[LoRARequest | None],
    preparer: Preparer,
    loop: Loop,
    token_bytes: TokenBytes,
) -> list[BeamSearchOutput]:
    """The best hypotheses of each job. Raises BadRequest for what cannot be searched, OctavoError else."""
    prompts = []
    for job in jobs:
        check(job.sampling, preparer.info.max_logprobs)
        prompts.append(tuple(preparer.encode(job).prompt_ids))
    beams = [
        Beam(
            len(prompt),
            job.sampling.n,
            min(job.sampling.max_tokens or 1, preparer.info.max_model_len - len(prompt)),
            ends_of(preparer.ends, job.sampling),
            length_penalty=job.sampling.length_penalty,
            keep_end=job.sampling.include_stop_str_in_output,
        )
        for job, prompt in zip(jobs, prompts, strict=True)
    ]
    while live := [number for number, beam in enumerate(beams) if beam.tails]:
        step: list[Prepared] = []
        for number in live:
            job, params = jobs[number], step_params(jobs[number].sampling.n)
            for place, tail in enumerate(beams[number].tails):
                one = Job(
                    id=f"{job.id}-{len(tail)}-{place}",
                    sampling=params,
                    prompt_ids=(*prompts[number], *tail),
                    priority=job.priority,
                    salt=job.salt,
                    adapter=job.adapter,
                    raw_logprobs=True,
                )
                step.append(preparer.prepare(one))
        found = iter(_positions(loop.run(step), len(step)))
        for number in live:
            beams[number].advance([next(found) for _ in beams[number].tails])
    return [
        BeamSearchOutput([_shown(one, prompt, preparer, token_bytes, asked) for one in beam.best()])
        for beam, prompt, asked in zip(beams, prompts, lora, strict=True)
    ]


def _positions(events: Iterator[tuple[int, Event]], count: int) -> list[TokenLogprobs]:
    """The one position of each request of a step."""
    found: dict[int, TokenLogprobs] = {}
    for number, event in events:
        if event.finish is not None and event.finish.reason == "error":
            raise OctavoError(event.finish.error or "The engine failed.")
        if event.logprobs:
            found[number] = event.logprobs[0]
    if len(found) != count:
        raise OctavoError("The engine gave no log-probabilities.")
    return [found[number] for number in range(count)]


def _shown(
    one: Hypothesis,
    prompt: Sequence[int],
    preparer: Preparer,
    token_bytes: TokenBytes,
    asked: LoRARequest | None,
) -> BeamSearchSequence:
    texts = TokenTexts(token_bytes)
    tokens = [*prompt, *one.tokens]
    tokenizer: Any = preparer.tokenizer
    primary = one.end is not None and one.end == preparer.ends.primary
    return BeamSearchSequence(
        tokens=tokens,
        logprobs=[logprob_dict(position, texts) for position in one.positions],
        cum_logprob=one.logprob,
        text=None if tokenizer is None else tokenizer.decode(tokens),
        finish_reason="length" if one.end is None else "stop",
        stop_reason=None if primary else one.end,
        lora_request=asked,
    )
