"""The native sampler against its NumPy twin, argument for argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.runner import sampling_reference as reference
from octavo.runner.sampling import Sampler
from octavo.types.engine import SamplingSpec

_native = pytest.importorskip("octavo._native", reason="the extension is not built")

VOCABS = (1, 2, 15, 16, 17, 63, 1000, 1023, 1024, 1025, 2048, 5000)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"temperature": 1e-9},
    {"temperature": 0.01},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 50},
    {"top_k": 900},
    {"top_k": 10**9},
    {"top_p": 1e-6},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.999},
    {"min_p": 1.0},
    {"min_p": 0.3},
    {"min_p": 1e-3},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 40, "min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
)


def logits_of(kind: str, rows: int, vocab: int) -> NDArray[np.float32]:
    """[rows, vocab] logits of a named shape; the same each time."""
    rng = np.random.default_rng([rows, vocab, len(kind)])
    x = rng.standard_normal((rows, vocab)) * {"flat": 0.1, "normal": 3.0, "steep": 30.0}.get(kind, 3.0)
    if kind == "ties":
        x = np.round(x)
    if kind == "equal":
        x[:] = 1.25
    if kind == "zeros":
        x = np.where(rng.random((rows, vocab)) < 0.5, 0.0, -0.0)
    if kind == "huge":
        x *= 1e37
    if kind == "holes":
        x[rng.random((rows, vocab)) < 0.5] = -np.inf
        x[:, rng.integers(vocab)] = 0.0
    if kind == "one":
        x[:] = -np.inf
        x[np.arange(rows), rng.integers(vocab, size=rows)] = -5.0
    return x.astype(np.float32)


KINDS = ("flat", "normal", "steep", "ties", "equal", "zeros", "huge", "holes", "one")


def near_boundary(x: NDArray[np.float32], spec: SamplingSpec, position: int, token: int) -> bool:
    """Whether `token` may stand for the reference's choice: rounding moves each boundary by 1e-5 at most.

    The boundaries are the one that u falls on, and top_p's cut, which may let one token more or less in.
    """
    u = reference.uniform(spec.seed, position)
    temperature, min_p = float(np.float32(spec.temperature)), float(np.float32(spec.min_p))
    for shift in (0.0, -1e-5, 1e-5):
        top_p = min(float(np.float32(spec.top_p)) + shift, 1.0) if spec.top_p < 1 else 1.0
        ids, weights = reference.kept(x, temperature, spec.top_k, max(top_p, 1e-12), min_p)
        place = np.flatnonzero(ids == token)
        if not len(place):
            continue
        high = np.cumsum(weights)[place[0]]
        total = weights.sum()
        if high - weights[place[0]] - 1e-5 * total <= u * total <= high + 1e-5 * total:
            return True
    return False


def draw_both(x: NDArray[np.float32], specs: list[SamplingSpec]) -> tuple[list[int], list[int]]:
    """Tokens of the native sampler and of its twin for one step."""
    tokens = []
    for native in (True, False):
        sampler = Sampler(x.shape[1], len(specs), native=native)
        for row, spec in enumerate(specs):
            sampler.add(row, spec, (), ())
        tokens.append([drawn.token for drawn in sampler.sample(x, range(len(specs)))])
    return tokens[0], tokens[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", VOCABS)
def test_tokens_agree(kind: str, vocab: int) -> None:
    different = 0
    x = logits_of(kind, len(SETTINGS), vocab)
    for seed in range(4):
        specs = [SamplingSpec(max_tokens=1, seed=seed * 100 + i, **kw) for i, kw in enumerate(SETTINGS)]
        for row, (native, slow) in enumerate(zip(*draw_both(x, specs), strict=True)):
            if native != slow:
                different += 1
                assert near_boundary(x[row], specs[row], 0, native), (
                    kind,
                    vocab,
                    SETTINGS[row],
                    native,
                    slow,
                )
    assert different <= 1


@pytest.mark.parametrize("kind", ["flat", "normal", "steep", "ties"])
def test_tokens_agree_in_a_large_vocabulary(kind: str) -> None:
    """Large enough for every stage of the search: bounds from 64 and from 512 groups, and all tokens."""
    x = logits_of(kind, 8, 70_000)
    specs = [
        SamplingSpec(
            max_tokens=1, seed=row, temperature=1.0, top_p=[0.3, 0.9, 0.9999, 1.0][row % 4], top_k=top_k
        )
        for row, top_k in enumerate([0, 0, 0, 0, 300, 2000, 50_000, 1000])
    ]
    for row, (native, slow) in enumerate(zip(*draw_both(x, specs), strict=True)):
        assert native == slow or near_boundary(x[row], specs[row], 0, native), (kind, specs[row])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    vocab=st.integers(1, 2500),
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.01, 2.0),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, 3000),
    min_p=st.floats(0.0, 1.0),
)
def test_tokens_agree_under_any_settings(
    seed: int, vocab: int, kind: str, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    spec = SamplingSpec(
        max_tokens=1, seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p
    )
    x = logits_of(kind, 1, vocab)
    (native,), (slow,) = draw_both(x, [spec])
    assert native == slow or near_boundary(x[0], spec, 0, native)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_papers_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """Known answers of the authors' Random123 library (kat_vectors)."""
    assert reference.philox(counter, key) == words


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("position", [0, 1, 2**31, 2**32 + 5, 2**40])
def test_uniform_is_the_same_number_natively(seed: int, position: int) -> None:
    assert _native.philox_uniform(seed, position) == reference.uniform(seed, position)
    assert 0.0 <= reference.uniform(seed, position) < 1.0


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000, 3000])
def test_masks_agree(vocab: int) -> None:
    """A row's mask leaves only its tokens, alone and beside allowed ids, bans and biases; -1 is no mask."""
    rng = np.random.default_rng(vocab)
    x = logits_of("normal", 24, vocab)
    words = (vocab + 1 + 31) // 32
    masks = rng.integers(-(2**31), 2**31, (5, words)).astype(np.int32)
    masks[0], masks[1] = -1, 0
    masks[1, 0] = 1
    places = np.array([row % 6 - 1 for row in range(24)], np.int32)
    for fields in (
        {"temperature": 0.0},
        {"temperature": 1.0, "logit_bias": ((0, 3.0),)},
        {"temperature": 0.0, "allowed_ids": tuple(range(0, vocab, 2))},
        {"temperature": 1.0, "bad_words": ((0,),)},
    ):
        answers = []
        for native in (True, False):
            sampler = Sampler(vocab, 24, native=native)
            for row in range(24):
                sampler.add(row, SamplingSpec(max_tokens=1, seed=row, **fields), (), ())
            changes = sampler._changes(range(24))
            rows = np.arange(24, dtype=np.int32)
            answers.append(
                sampler._sample(
                    x, rows, sampler._reals, sampler._integers, *changes, None, None, (places, masks)
                )
            )
        native_tokens, slow_tokens = answers[0][0], answers[1][0]
        assert (answers[0][1] == answers[1][1]).all()
        assert (native_tokens == slow_tokens).mean() > 0.95, "rounding at most"
        for row, token in enumerate(native_tokens.tolist()):
            if token >= 0 and places[row] >= 0:
                assert masks[places[row], token // 32] >> (token % 32) & 1


def test_masks_of_a_wrong_shape_are_refused() -> None:
    sampler = Sampler(64, 1)
    sampler.add(0, SamplingSpec(max_tokens=1), (), ())
    given = (np.zeros((1, 64), np.float32), np.zeros(1, np.int32), sampler._reals, sampler._integers)
    for places, words in ((np.zeros(1, np.int32), 1), (np.ones(1, np.int32), 2), (np.zeros(2, np.int32), 2)):
        with pytest.raises(ValueError, match="mask"):
            sampler._sample(
                *given, *sampler._changes([0]), None, None, (places, np.zeros((1, words), np.int32))
            )


@pytest.mark.parametrize("vocab", [1, 5, 17, 1000, 3000])
@pytest.mark.parametrize("kind", ["normal", "ties", "holes"])
def test_edits_agree(kind: str, vocab: int) -> None:
    """Greedy over edited logits shows every edit; ids beyond the vocabulary are skipped."""
    rng = np.random.default_rng(vocab)
    specs = []
    for row in range(40):
        ids = rng.integers(0, vocab + 3, size=6).tolist()
        specs.append(
            SamplingSpec(
                max_tokens=9,
                temperature=[0.0, 1.0][row % 2],
                seed=row,
                logit_bias=tuple((i, float(rng.normal() * 20)) for i in ids[:3]) if row % 3 else (),
                allowed_ids=tuple(range(0, vocab, 2)) if row % 4 == 0 else (),
                bad_words=((ids[4],), (ids[1], ids[5])) if row % 5 == 0 and vocab > 5 else (),
                repetition_penalty=[1.0, 1.3, 0.7][row % 3],
                presence_penalty=[0.0, 1.5][row % 2],
                frequency_penalty=[0.0, -0.5, 0.9][row % 3],
            )
        )
    samplers = [Sampler(vocab, len(specs), native=native) for native in (True, False)]
    for sampler in samplers:
        history = np.random.default_rng(7)
        for row, spec in enumerate(specs):
            prompt = history.integers(0, vocab + 2, size=20).tolist()
            sampler.add(row, spec, prompt, history.integers(0, vocab, size=row % 4).tolist())
    for step in range(6):
        x = logits_of(kind, len(specs), vocab) + np.float32(step)
        native, slow = (sampler.sample(x, range(len(specs))) for sampler in samplers)
        assert native == slow


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "steep"])
def test_logprobs_agree(kind: str, vocab: int) -> None:
    x = logits_of(kind, 6, vocab)
    given_ids = np.random.default_rng(vocab).integers(0, vocab, size=6).tolist()
    for k in (0, 1, 5, 20, vocab, vocab + 7, -1):
        fast = Sampler(vocab, 1).prompt_logprobs(x, given_ids, k)
        slow = Sampler(vocab, 1, native=False).prompt_logprobs(x, given_ids, k)
        for a, b in zip(fast, slow, strict=True):
            assert (a.ids, a.ranks) == (b.ids, b.ranks)
            np.testing.assert_allclose(a.values, b.values, rtol=1e-6, atol=2e-6)
            assert len(a.ids) == 1 + (vocab if k == -1 else min(k, vocab))


@pytest.mark.parametrize("native", [True, False])
def test_logprobs_are_of_the_raw_logits(native: bool) -> None:
    """Bias, penalties and temperature change the choice, not what is reported (vLLM's raw_logprobs)."""
    x = np.array([[1.0, 2.0, 3.0, 0.5]], np.float32)
    expected = np.log(np.exp(x[0]) / np.exp(x[0]).sum())
    sampler = Sampler(4, 1, native=native)
    sampler.add(0, SamplingSpec(max_tokens=1, temperature=0.0, logit_bias=((0, 50.0),), logprobs=2), (2,), ())
    (drawn,) = sampler.sample(x, [0])
    assert drawn.token == 0
    assert drawn.logprobs is not None
    assert drawn.logprobs.ids == (0, 2, 1)
    assert drawn.logprobs.ranks == (3, 1, 2)
    np.testing.assert_allclose(drawn.logprobs.values, expected[[0, 2, 1]], rtol=1e-6)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("bad", "message"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "No token")])
@pytest.mark.parametrize("vocab", [1, 40, 1500])
def test_broken_rows_are_flagged_and_the_others_go_on(
    native: bool, bad: float, message: str, vocab: int
) -> None:
    x = np.zeros((3, vocab), np.float32)
    x[1, vocab - 1] = bad
    if bad == -np.inf:
        x[1] = bad
    sampler = Sampler(vocab, 3, native=native)
    for row in range(3):
        sampler.add(row, SamplingSpec(max_tokens=1, temperature=row * 1.0, seed=row, logprobs=2), (), ())
    first, broken, last = sampler.sample(x, [0, 1, 2])
    assert broken.token == -1
    assert broken.error is not None
    assert message in broken.error
    assert broken.logprobs is None
    assert first.error is None
    assert last.token >= 0
    assert np.isnan(sampler.prompt_logprobs(x, [0, 0, 0], 1)[1].values[0])


@pytest.mark.parametrize("native", [True, False])
def test_nothing_allowed_is_an_error(native: bool) -> None:
    sampler = Sampler(4, 1, native=native)
    sampler.add(0, SamplingSpec(max_tokens=9, min_tokens=2, eos_id=1, allowed_ids=(1,)), (), ())
    (drawn,) = sampler.sample(np.zeros((1, 4), np.float32), [0])
    assert drawn.token == -1
    assert "min_tokens" in str(drawn.error)


def test_rows_on_a_pool_are_the_same() -> None:
    x = logits_of("normal", 16, 5000)
    answers = []
    for pool in (None, _native.Pool(2, [])):
        sampler = Sampler(5000, 16, pool=pool)
        for row in range(16):
            sampler.add(row, SamplingSpec(max_tokens=1, seed=row, top_k=row % 4, logprobs=3), (), ())
        answers.append([sampler.sample(x, range(16)) for _ in range(3)])
    assert answers[0] == answers[1]


def test_bad_arrays_are_refused_and_not_read() -> None:
    x = np.zeros((2, 4), np.float32)
    sampler = Sampler(4, 2)
    with pytest.raises(ValueError, match="slot"):
        sampler.sample(x, [0, 9])
    with pytest.raises(ValueError, match="length"):
        sampler.sample(x, [0])
    with pytest.raises(ValueError, match="length"):
        sampler.prompt_logprobs(x, [1], 0)
