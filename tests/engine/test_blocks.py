"""BlockWatch: times in the lives of KV blocks."""

from __future__ import annotations

import pytest

from octavo.engine.blocks import BlockPool, BlockWatch
from octavo.types.stats import BLOCK_EDGES_S


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lives_idle_times_and_gaps() -> None:
    clock = Clock()
    pool = BlockPool(2, BlockWatch(1.0, clock))
    (block,) = pool.allocate(1)
    pool.publish(block, b"a")
    clock.now += 3
    pool.release([block])
    clock.now += 4
    pool.share(pool.match([b"a"], 1))
    pool.release([block])
    clock.now += 50
    pool.allocate(2)
    assert pool.watch is not None
    lifetime, idle, gap = pool.watch.times()
    assert [one.sum_s for one in (lifetime, idle, gap)] == [57.0, 50.0, 7.0]
    for one, edge in ((lifetime, 60.0), (idle, 60.0), (gap, 10.0)):
        assert [count for count in one.counts if count] == [1]
        assert one.counts.index(1) == BLOCK_EDGES_S.index(edge)


def test_a_block_that_was_never_cached_has_no_end() -> None:
    clock = Clock()
    pool = BlockPool(1, BlockWatch(1.0, clock))
    for _ in range(5):
        pool.release(pool.allocate(1))
        clock.now += 1
    assert pool.watch is not None
    assert [one.sum_s for one in pool.watch.times()] == [0.0] * 3


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_blocks_is_measured(share: float) -> None:
    clock = Clock()
    pool = BlockPool(2000, BlockWatch(share, clock))
    blocks = pool.allocate(2000)
    for block in blocks:
        pool.publish(block, block.to_bytes(4, "little"))
    pool.release(blocks)
    clock.now += 1
    pool.allocate(2000)
    assert pool.watch is not None
    count = sum(pool.watch.times()[0].counts)
    assert abs(count - 2000 * share) <= 100 * (0 < share < 1)
