"""`lora_request` of the offline classes: one for all prompts, one for each, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.errors import BadRequest
from octavo.types.lora import Adapter, LoRARequest

if TYPE_CHECKING:
    from octavo.lora.registry import Adapters

Requests = LoRARequest | Sequence[LoRARequest | None] | None


def pair_lora(wanted: Requests, count: int) -> list[LoRARequest | None]:
    """One for each of `count` prompts; BadRequest when the numbers differ or one is no LoRARequest."""
    paired = [wanted] * count if wanted is None or isinstance(wanted, LoRARequest) else list(wanted)
    if len(paired) != count:
        raise BadRequest(f"There are {count} prompts but {len(paired)} LoRARequests.", param="lora_request")
    for one in paired:
        if one is not None and not isinstance(one, LoRARequest):
            raise BadRequest(f"lora_request holds a {type(one).__name__}.", param="lora_request")
    return paired


def adapter_of(wanted: LoRARequest | None, adapters: Adapters | None) -> Adapter | None:
    """The adapter that is asked for, read when it is new. BadRequest without enable_lora."""
    if wanted is None:
        return None
    if adapters is None:
        raise BadRequest(
            f"lora_request asks for {wanted.lora_name!r}, but adapters are off.",
            hint="Pass enable_lora=True when you make the LLM.",
            param="lora_request",
        )
    return adapters.request(wanted)


def adapters_of(paired: Sequence[LoRARequest | None], adapters: Adapters | None) -> list[Adapter | None]:
    """The adapter of each; one that several prompts ask for is read once, also with load_inplace."""
    different = {id(one): one for one in paired}
    found = {key: adapter_of(one, adapters) for key, one in different.items()}
    return [found[id(one)] for one in paired]
