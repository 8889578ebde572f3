"""`truncation` "auto": the oldest messages go until the rest fits."""

from __future__ import annotations

import msgspec

from octavo.server.state import State
from octavo.types.job import Job


async def fitting(state: State, job: Job) -> Job:
    """`job` without the oldest turns that do not fit beside its answer.

    A turn begins with a user's message. System messages at the beginning stay, and so does the last turn,
    whether it fits or not.
    """
    messages = job.messages or ()
    limit = state.service.info.max_model_len - (job.sampling.max_tokens or 1)
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    later = [i for i, m in enumerate(messages) if m["role"] == "user" and i > first]
    cuts = [first, *later]

    async def fits(cut: int) -> bool:
        left = (*messages[:first], *messages[cut:])
        return len((await state.service.tokenize(messages=left, chat=job.chat)).prompt_ids) <= limit

    if await fits(cuts[0]):
        return job
    low, high = 1, len(cuts) - 1  # the answer is the first cut of low..high that fits, else the last one
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(cuts[middle]) else (middle + 1, high)
    return msgspec.structs.replace(job, messages=(*messages[:first], *messages[cuts[high] :]))
