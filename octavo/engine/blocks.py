"""The pool of KV blocks: reference counts, the free list, and the prefix cache over blocks nobody holds."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence

from octavo.types.stats import BLOCK_EDGES_S, BlockTimes


class BlockPool:
    """Blocks 0 .. blocks-1, each held by any number of sequences.

    A block without holders is free: *blank* when it has no name, *idle* when it still carries cached tokens
    under its digest. `allocate` takes blank blocks first and then the idle one that was let go longest ago.
    """

    def __init__(self, blocks: int, watch: BlockWatch | None = None) -> None:
        """`watch` hears of what happens to blocks."""
        self.blocks = blocks
        self.watch = watch
        self._holders = [0] * blocks
        self._digest: list[bytes | None] = [None] * blocks
        self._blank = list(range(blocks - 1, -1, -1))
        self._idle: dict[int, None] = {}
        self._by_digest: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that `allocate` can still give, cached ones included."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self.blocks - self.free

    @property
    def cached(self) -> int:
        """Blocks that a prefix lookup can find."""
        return len(self._by_digest)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks for one holder. Asking for more than `free` is a fault of the caller."""
        if count > self.free:
            raise RuntimeError(f"{count} blocks were asked for, {self.free} are free")
        taken = [self._take() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        if self.watch is not None:
            self.watch.taken(taken)
        return taken

    def _take(self) -> int:
        if self._blank:
            return self._blank.pop()
        block = next(iter(self._idle))
        del self._idle[block]
        self._unname(block)
        if self.watch is not None:
            self.watch.evicted(block)
        return block

    def _unname(self, block: int) -> None:
        digest = self._digest[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digest[block] = None

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for each of these blocks, which `match` has just given."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1
        if self.watch is not None:
            self.watch.shared(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less; the last block first, so that a prefix outlives what follows it."""
        for block in reversed(blocks):
            left = self._holders[block] - 1
            if left < 0:
                raise RuntimeError(f"block {block} was freed twice")
            self._holders[block] = left
            if left:
                continue
            if self._digest[block] is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let lookups find a held, fully computed block. A second block of the same tokens stays private."""
        if digest not in self._by_digest and self._digest[block] is None:
            self._by_digest[digest] = block
            self._digest[block] = digest

    def match(self, digests: Sequence[bytes], limit: int) -> list[int]:
        """The blocks of the longest cached prefix, at most `limit` of them. Takes no hold: see `share`."""
        found: list[int] = []
        for digest in digests[:limit]:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Sequence[int]) -> int:
        """How many of these blocks have no holder (sharing them makes `free` that much smaller)."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def forget(self) -> None:
        """Empty the prefix cache; held blocks stay with their holders but are no longer found."""
        for block in tuple(self._by_digest.values()):
            self._unname(block)
        self._blank.extend(self._idle)
        self._idle.clear()


class BlockWatch:
    """Times in the lives of some blocks: how long cached ones lived and lay idle before another took their
    place, and how long it took until they were used again.
    """

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        """`share` of the blocks, drawn each time that one is taken."""
        self._share = share
        self._clock = clock
        self._random = random.Random(0)
        self._born_s: dict[int, float] = {}
        self._used_s: dict[int, float] = {}
        self._lifetime, self._idle, self._gap = _Seconds(), _Seconds(), _Seconds()

    def taken(self, blocks: Sequence[int]) -> None:
        """They begin to hold something new."""
        now = self._clock()
        for block in blocks:
            self._born_s.pop(block, None)
            if self._random.random() < self._share:
                self._born_s[block] = self._used_s[block] = now

    def shared(self, blocks: Sequence[int]) -> None:
        """They are used once more."""
        now = self._clock()
        for block in blocks:
            if block in self._born_s:
                self._gap.add(now - self._used_s[block])
                self._used_s[block] = now

    def evicted(self, block: int) -> None:
        """What it held is lost."""
        born_s = self._born_s.pop(block, None)
        if born_s is not None:
            now = self._clock()
            self._lifetime.add(now - born_s)
            self._idle.add(now - self._used_s[block])

    def times(self) -> tuple[BlockTimes, ...]:
        """Lifetimes, idle times before the end, and gaps between uses; any thread may ask."""
        return self._lifetime.seen(), self._idle.seen(), self._gap.seen()


class _Seconds:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BLOCK_EDGES_S) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BLOCK_EDGES_S, seconds)] += 1
        self._sum += seconds

    def seen(self) -> BlockTimes:
        return BlockTimes(tuple(self._counts), self._sum)
