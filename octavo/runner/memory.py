"""How many KV blocks fit: one calculation, made once, with its numbers in every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.config.environment import show_bytes
from octavo.errors import ConfigError, OutOfMemory
from octavo.ops.contract import AttentionSpec

CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "int8": 1}
"""Bytes of one number of the cache."""
_SCALE_BYTES = {"int8": 4}
"""Bytes of the scale of one head's key, or value, where there is one."""

_HEAD_MULTIPLE = 16
_MIB = 1 << 20


def bytes_per_token(specs: Sequence[AttentionSpec], dtype: str) -> int:
    """Keys and values of one position in all layers; heads are padded to 16 numbers. Raises ConfigError."""
    if dtype not in CACHE_BYTES:
        raise ConfigError(f"The KV cache dtype {dtype!r} is unknown.", hint=f"Use {', '.join(CACHE_BYTES)}.")
    number, scale = CACHE_BYTES[dtype], _SCALE_BYTES.get(dtype, 0)
    return sum(2 * spec.kv_heads * (_padded(spec.head_dim) * number + scale) for spec in specs)


def _padded(head_dim: int) -> int:
    return -(-head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE


@dataclass(frozen=True)
class CacheBudget:
    """What decides the number of blocks."""

    specs: tuple[AttentionSpec, ...]
    block_size: int
    dtype: str
    free_bytes: int
    """Memory left after the weights are loaded."""
    kv_cache_memory_bytes: int | None = None
    """Said by the user; else `memory_share` of what is free."""
    memory_share: float = 0.5
    override: int | None = None
    """The number of blocks itself, whatever is free."""

    @property
    def bytes_per_block(self) -> int:
        return bytes_per_token(self.specs, self.dtype) * self.block_size

    @property
    def cache_bytes(self) -> int:
        if self.kv_cache_memory_bytes is not None:
            return self.kv_cache_memory_bytes
        return int(self.free_bytes * self.memory_share)

    @property
    def blocks(self) -> int:
        """Blocks that the budget pays for."""
        if self.override is not None:
            return self.override
        return self.cache_bytes // max(1, self.bytes_per_block)

    @property
    def context_tokens(self) -> int:
        """The longest request that fits alone, in whole blocks."""
        return self.blocks * self.block_size

    def choose_context(self, model_tokens: int) -> int:
        """max_model_len when the user gave none: the model's own or what fits. Raises OutOfMemory."""
        tokens = min(model_tokens, self.context_tokens)
        if tokens < 2:
            raise self._too_small(model_tokens)
        return tokens

    def _too_small(self, max_model_len: int) -> OutOfMemory:
        needed = -(-max_model_len // self.block_size) * self.bytes_per_block
        fits = self.context_tokens
        if self.override is not None:
            given = f"num_blocks_override gives {self.blocks} blocks of {self.block_size} tokens"
        elif self.kv_cache_memory_bytes is not None:
            given = f"--kv-cache-memory gives {show_bytes(self.cache_bytes)}"
        else:
            share = f"{self.memory_share:.0%} of {show_bytes(self.free_bytes)} free"
            given = f"there is {show_bytes(self.cache_bytes)} ({share})"
        return OutOfMemory(
            f"One request of {max_model_len:,} tokens needs {show_bytes(needed)} of KV cache, but {given}.",
            hint=f"Raise --kv-cache-memory to {-(-needed // _MIB)}MiB"
            + (f" or use --max-model-len {fits} or less." if fits >= 2 else " or free memory."),
        )


@dataclass(frozen=True)
class CacheShape:
    """The KV cache as it is made: `blocks` of `block_size` tokens."""

    blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int

    @classmethod
    def fit(cls, budget: CacheBudget, *, max_model_len: int, max_num_seqs: int) -> CacheShape:
        """As many blocks as the budget pays for, but no more than all sequences at full length can use.

        Raises OutOfMemory when not even one full-length request fits.
        """
        each = -(-max_model_len // budget.block_size)
        if budget.blocks < each:
            raise budget._too_small(max_model_len)
        blocks = budget.blocks if budget.override is not None else min(budget.blocks, each * max_num_seqs)
        return cls(blocks, budget.block_size, budget.bytes_per_block, max_model_len)

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def nbytes(self) -> int:
        return self.blocks * self.bytes_per_block

    @property
    def full_requests(self) -> float:
        """How many requests of max_model_len tokens fit at once."""
        return self.blocks / -(-self.max_model_len // self.block_size)

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"KV cache: {self.tokens:,} tokens ({show_bytes(self.nbytes)}), "
            f"{self.full_requests:.1f} full-length requests of {self.max_model_len:,} tokens"
        )
