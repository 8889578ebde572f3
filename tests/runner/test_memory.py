"""How many blocks fit, and what is said when they do not."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError, OutOfMemory
from octavo.ops.contract import AttentionSpec
from octavo.runner.memory import CacheBudget, CacheShape, bytes_per_token

GIB = 1 << 30


def layers(count: int = 2, kv_heads: int = 2, head_dim: int = 64) -> tuple[AttentionSpec, ...]:
    return tuple(AttentionSpec(i, 8, kv_heads, head_dim, 1.0) for i in range(count))


def budget(**kw) -> CacheBudget:
    given = {"specs": layers(), "block_size": 16, "dtype": "bfloat16", "free_bytes": 64 << 20, **kw}
    return CacheBudget(**given)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "expected"),
    [
        (64, "bfloat16", 1024),
        (64, "float32", 2048),
        (20, "float16", 512),
        (64, "int8", 544),
        (64, "fp8_e4m3", 512),
        (16, "float32", 512),
    ],
)
def test_bytes_per_token(head_dim, dtype, expected):
    assert bytes_per_token(layers(head_dim=head_dim), dtype) == expected


def test_layers_may_differ():
    assert bytes_per_token(layers(1, 1, 16) + layers(1, 4, 32), "float32") == 4 * 2 * (16 + 128)


def test_unknown_dtype():
    with pytest.raises(ConfigError, match="'int3'"):
        bytes_per_token(layers(), "int3")


def test_the_share_of_free_memory_decides():
    shape = CacheShape.fit(budget(), max_model_len=4096, max_num_seqs=1000)
    assert shape.bytes_per_block == 16 * 1024
    assert shape.nbytes == 32 << 20
    assert shape.blocks == 2048
    assert shape.tokens == 32768


def test_the_users_bytes_win_over_the_share():
    shape = CacheShape.fit(budget(kv_cache_memory_bytes=8 << 20), max_model_len=4096, max_num_seqs=1000)
    assert shape.nbytes == 8 << 20


def test_never_more_than_all_sequences_can_use():
    shape = CacheShape.fit(budget(), max_model_len=100, max_num_seqs=3)
    assert shape.blocks == 3 * 7


def test_override_is_taken_as_it_is():
    shape = CacheShape.fit(budget(override=5, free_bytes=0), max_model_len=80, max_num_seqs=1)
    assert shape.blocks == 5
    with pytest.raises(OutOfMemory, match="5 blocks of 16 tokens"):
        CacheShape.fit(budget(override=5), max_model_len=81, max_num_seqs=1)


def test_too_small_names_the_numbers_and_what_would_fit():
    with pytest.raises(OutOfMemory) as caught:
        CacheShape.fit(budget(kv_cache_memory_bytes=1 << 20), max_model_len=4096, max_num_seqs=4)
    text = str(caught.value)
    assert "4,096 tokens needs 4 MiB" in text
    assert "--kv-cache-memory gives 1 MiB" in text
    assert "--max-model-len 1024" in text
    CacheShape.fit(budget(kv_cache_memory_bytes=1 << 20), max_model_len=1024, max_num_seqs=4)
    with pytest.raises(OutOfMemory, match="to 5MiB") as caught:  # 4.04 of them, which would not be 4.0
        CacheShape.fit(budget(kv_cache_memory_bytes=1 << 20), max_model_len=4136, max_num_seqs=4)
    CacheShape.fit(budget(kv_cache_memory_bytes=5 << 20), max_model_len=4136, max_num_seqs=4)
    with pytest.raises(OutOfMemory, match=r"50% of 1 KiB free"):
        CacheShape.fit(budget(free_bytes=1024), max_model_len=4096, max_num_seqs=4)


def test_the_context_is_the_models_or_what_fits():
    assert budget().choose_context(4096) == 4096
    assert budget(kv_cache_memory_bytes=1 << 20).choose_context(131072) == 1024
    with pytest.raises(OutOfMemory):
        budget(kv_cache_memory_bytes=0).choose_context(4096)


def test_a_model_without_attention_fits_anywhere():
    assert CacheShape.fit(budget(specs=(), free_bytes=GIB), max_model_len=64, max_num_seqs=2).blocks == 8


def test_describe():
    shape = CacheShape(blocks=7716, block_size=16, bytes_per_block=167_000, max_model_len=32768)
    assert shape.describe() == "KV cache: 123,456 tokens (1.2 GiB), 3.8 full-length requests of 32,768 tokens"
