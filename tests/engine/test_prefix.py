"""Block pool and prefix cache: exact counts, no wrong hit, shared prompts computed once."""

from __future__ import annotations

import pytest
from engine_fakes import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.engine.blocks import BlockPool
from octavo.engine.prefix import BlockHasher
from octavo.errors import OctavoError

LONG = [(7 * i * i + 3 * i) % 53 for i in range(60)]


class PoolMachine(RuleBasedStateMachine):
    """The pool against a plain model: who holds what, what is named how."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8)
        self.held: list[list[int]] = []
        self.serial = 0
        self.named: dict[int, bytes] = {}

    @rule(count=st.integers(0, 8))
    def allocate(self, count):
        if count > self.pool.free:
            with pytest.raises(RuntimeError, match="are free"):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert not {b for held in self.held for b in held} & set(blocks)
        for block in blocks:
            self.named.pop(block, None)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def publish(self, data):
        block = data.draw(st.sampled_from([b for held in self.held for b in held]))
        self.serial += 1
        digest = str(self.serial).encode()
        self.pool.publish(block, digest)
        self.named.setdefault(block, digest)

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def share(self, data):
        block = data.draw(st.sampled_from(sorted(self.named)))
        (found,) = self.pool.match([self.named[block]], 1)
        assert found == block
        self.pool.share([block])
        self.held.append([block])

    @rule()
    def forget(self):
        self.pool.forget()
        self.named.clear()

    @invariant()
    def counts(self):
        distinct = {b for held in self.held for b in held}
        assert self.pool.used == len(distinct)
        assert self.pool.free == 8 - len(distinct)
        assert self.pool.cached == len(self.named)
        for block, digest in self.named.items():
            assert self.pool.match([digest], 1) == [block]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_double_free_is_noticed():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.release(blocks)


def test_least_recently_used_goes_first_and_tails_before_heads():
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    for blocks, names in ((first, b"ab"), (second, b"cd")):
        for block, name in zip(blocks, names, strict=True):
            pool.publish(block, bytes([name]))
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    assert pool.allocate(3) == [second[1], second[0], first[1]]


def test_match_stops_at_the_first_gap_and_at_the_limit():
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (b"a", b"b", b"d"), strict=True):
        pool.publish(block, name)
    assert pool.match([b"a", b"b", b"c", b"d"], 9) == blocks[:2]
    assert pool.match([b"a", b"b"], 1) == blocks[:1]


def test_digests_depend_on_secret_salt_rope_and_all_tokens_before():
    def last(secret: bytes, salt: str, rope: int, tokens: list[int]) -> bytes:
        hasher, digests = BlockHasher(secret), []
        hasher.extend(digests, hasher.root(salt, rope), tokens, 2, len(tokens) // 2)
        return digests[-1]

    base = last(b"s", "", 0, [1, 2, 3, 4])
    assert base == last(b"s", "", 0, [1, 2, 3, 4, 5])
    others = [
        last(b"t", "", 0, [1, 2, 3, 4]),
        last(b"s", "x", 0, [1, 2, 3, 4]),
        last(b"s", "", 9, [1, 2, 3, 4]),
        last(b"s", "", 0, [9, 2, 3, 4]),
        last(b"s", "", 0, [3, 4]),
        last(b"s", "\udc80", 0, [1, 2, 3, 4]),
    ]
    assert len({base, *others}) == 7
    assert BlockHasher().root("") != BlockHasher().root("")
    with pytest.raises(OctavoError):
        BlockHasher(b"")


def test_a_second_prompt_reads_the_firsts_blocks():
    world = World(max_model_len=128, max_num_batched_tokens=64, max_num_seqs=8)
    world.submit("a", LONG)
    world.drain()
    world.submit("b", [*LONG[:50], 1, 2, 3])
    world.drain()
    assert world.outs["a"][0].cached_tokens == 0
    assert {out.cached_tokens for out in world.outs["b"]} == {48}
    world.check("b")
    stats = world.engine.stats()
    assert stats.prompt_tokens_total == 60 + 53 - 48
    assert stats.prefix_hit_tokens_total == 48
    assert stats.prefix_queried_tokens_total == 113


@pytest.mark.parametrize("length", [4, 8, 32])
def test_a_wholly_cached_prompt_still_computes_its_last_token(length):
    world = World()
    for name in ("a", "b"):
        world.submit(name, LONG[:length], max_tokens=9)
        world.drain()
    assert world.outs["b"][0].cached_tokens == length - 4
    assert world.tokens("a") == world.tokens("b")
    world.check("b")


def test_outputs_are_cached_too():
    """The next turn of a conversation finds the answer of the last one."""
    world = World()
    world.submit("a", LONG[:10], max_tokens=20)
    world.drain()
    world.submit("b", LONG[:10] + world.tokens("a") + [5])
    world.drain()
    assert world.outs["b"][0].cached_tokens == 28
    world.check("b")


def test_children_compute_their_prompt_once():
    world = World(max_model_len=128, max_num_batched_tokens=64)
    for index in range(4):
        world.submit(f"c{index}", LONG, max_tokens=6, seed=index)
    world.drain()
    assert world.engine.stats().prompt_tokens_total == 60 + 3 * 4
    for index in range(4):
        world.check(f"c{index}")
    world.check_idle()


def test_others_pass_who_waits_for_a_prefix():
    world = World(max_model_len=128, max_chunk_tokens=8)
    world.submit("first", LONG)
    world.submit("same", LONG)
    world.submit("other", [1, 2])
    world.step()
    running = {sequence.request.id for sequence in world.engine.scheduler.running}
    assert running == {"first", "other"}
    world.step()
    world.engine.abort(["first"])
    world.drain()
    assert world.outs["same"][0].cached_tokens == 16
    world.check("same")
    world.check("other")
    world.check_idle()


def test_salts_keep_sequences_apart():
    world = World()
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        world.submit(name, LONG[:20], salt=salt)
        world.drain()
    assert [world.outs[name][0].cached_tokens for name in "abc"] == [0, 0, 16]


def test_prompts_with_other_rotary_angles_do_not_share():
    world = World(switch=16)
    for name, length in (("a", 30), ("b", 29), ("c", 29), ("d", 12)):
        world.submit(name, LONG[:length], max_tokens=10)
        world.drain()
        world.check(name)
    assert [world.outs[name][0].cached_tokens for name in "abcd"] == [0, 0, 28, 0]


def test_prompt_logprobs_do_not_read_the_cache_but_fill_it():
    world = World()
    world.submit("a", LONG[:20], prompt_logprobs=0)
    world.drain()
    world.submit("b", LONG[:20], prompt_logprobs=0)
    world.drain()
    world.submit("c", LONG[:20])
    world.drain()
    assert [world.outs[name][0].cached_tokens for name in "abc"] == [0, 0, 16]
    assert len(world.outs["b"][0].prompt_logprobs) == 20


def test_caching_off():
    world = World(prefix_caching=False)
    for name in "ab":
        world.submit(name, LONG[:20])
        world.drain()
        world.check(name)
    assert world.outs["b"][0].cached_tokens == 0
    assert world.pool.cached == 0
    assert world.engine.stats().prefix_queried_tokens_total == 0


def test_reset_forgets():
    world = World()
    world.submit("a", LONG[:20])
    world.drain()
    world.engine.reset_prefix_cache()
    world.submit("b", LONG[:20])
    world.drain()
    assert world.outs["b"][0].cached_tokens == 0
    world.check_idle()


def test_eviction_under_pressure_never_gives_wrong_tokens():
    world = World(blocks=16, block_size=4)
    for round_ in range(6):
        for index in range(4):
            name = f"r{round_}.{index}"
            world.submit(name, [index, *LONG[: 10 + index]], max_tokens=12)
        world.drain()
    for name in world.outs:
        world.check(name)
    assert world.engine.stats().prefix_hit_tokens_total > 0
    world.check_idle()
