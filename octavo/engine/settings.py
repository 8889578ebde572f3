"""What the engine is told once: its bounds and its policy."""

from __future__ import annotations

import msgspec

from octavo.errors import ConfigError

POLICIES = ("fcfs", "priority")


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a step, of a sequence and of the waiting queue."""

    max_model_len: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    """Tokens of one step, over all sequences."""
    logit_rows: int = 256
    """Rows of logits of one step: one for each sampling sequence, one for each prompt log-probability."""
    max_chunk_tokens: int | None = None
    """Largest part of one prompt in a step; None: whatever the step has left."""
    step_target_s: float | None = None
    """About how long a step with decodes may take (without any: four times that), by the measured speed of
    the machine; decides how much of a prompt goes into one. None: as much as max_num_batched_tokens."""
    policy: str = "fcfs"
    prefix_caching: bool = True
    max_queued_requests: int = 1024
    max_queued_tokens: int = 4_000_000
    vocab: int | None = None
    """When given, prompts with ids outside 0..vocab-1 are refused."""
    rope_switch_tokens: int | None = None
    """Prompts longer than this have rotary angles that depend on the prompt's length (dynamic NTK, longrope);
    they share cached blocks only with prompts of the same length. None: angles never depend on it."""
    watched_blocks: float = 0.0
    """Share of the KV blocks whose times are taken."""
    max_adapters: int = 0
    """Different LoRA adapters that may be at work in one step; 0: there are none."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(
                f"The scheduling policy {self.policy!r} is unknown.",
                hint=f"Use one of {', '.join(POLICIES)}.",
            )
        if self.max_num_seqs < 1 or self.max_model_len < 2:
            raise ConfigError(
                f"max_num_seqs is {self.max_num_seqs} and max_model_len {self.max_model_len}.",
                hint="At least 1 sequence and 2 tokens are needed.",
            )
        for name in ("max_num_batched_tokens", "logit_rows"):
            if getattr(self, name) < self.max_num_seqs:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, less than max_num_seqs {self.max_num_seqs}: "
                    "a step could not give every running sequence its token.",
                    hint=f"Raise {name} or lower max_num_seqs.",
                )
        if self.max_chunk_tokens is not None and self.max_chunk_tokens < 1:
            raise ConfigError(
                f"max_chunk_tokens is {self.max_chunk_tokens}.", hint="Give at least 1, or none."
            )
