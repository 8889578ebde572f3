"""Every family and variant against transformers, on every backend.

Tolerance: both sides compute in float32, in another order. The logits of these models have a standard
deviation of 1 to 4, and over all cases the two differ by at most 1.2e-5 of it (measured); a wrong angle,
mask edge, norm or rounding step shows as 1e-2 or more. LOGITS lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from batches import Answer, Session, greedy, greedy_together
from family_cases import CASES, VOCAB, Case, Made, make, make_wrapper
from numpy.typing import NDArray

from octavo.ops.contract import Precision, Runnable

LOGITS = 1e-4
STEPS = 32
PROMPTS = [[int(t) for t in np.random.default_rng(n).integers(0, VOCAB, n)] for n in (1, 7, 61)]
"""One token; less than every window; longer than every window and than every original length."""

Bind = Callable[..., Runnable]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Case], Made]]:
    """made(case): the case's checkpoint, built on first use and kept for the module."""
    cases: dict[str, Made] = {}

    def get(case: Case) -> Made:
        if case.name not in cases:
            cases[case.name] = make(case, tmp_path_factory.mktemp(case.name))
        return cases[case.name]

    yield get
    cases.clear()


def tolerance(logits: NDArray[Any]) -> float:
    return LOGITS * max(1.0, float(logits.std()))


def check_answer(answer: Answer, expected: NDArray[np.float32]) -> None:
    """Logits of every step within tolerance, and so every token transformers' own, but for measured ties."""
    allowed = tolerance(expected)
    worst = np.abs(answer.logits - expected).max()
    assert worst <= allowed, f"logits differ by {worst:.3g}, allowed {allowed:.3g}"
    for step, token in enumerate(answer.tokens):
        best = np.sort(expected[step])[::-1]
        if token != int(expected[step].argmax()):
            assert best[0] - best[1] <= 2 * allowed, f"step {step}: {token} is not the best, and no tie"


def same(a: NDArray[np.float32], b: NDArray[np.float32], backend: str) -> None:
    """Bit by bit where a backend promises it; the twins' matrix products may take another order by shape."""
    if backend == "native":
        np.testing.assert_array_equal(a, b)
    else:
        assert np.abs(a - b).max() <= tolerance(b)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_transformers(case: Case, made: Callable[[Case], Made], bind: Bind) -> None:
    checkpoint = made(case)
    model = bind(checkpoint.folder)
    for prompt in PROMPTS:
        answer = greedy(model, prompt, STEPS)
        expected = checkpoint.logits([*prompt, *answer.tokens[:-1]], len(prompt))
        check_answer(answer, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_company_and_chunks_change_nothing(
    case: Case, made: Callable[[Case], Made], bind: Bind, backend: str
) -> None:
    model = bind(made(case).folder)
    alone = [greedy(model, prompt, 5) for prompt in PROMPTS]
    together = greedy_together(model, PROMPTS, 5)
    chunked = [greedy(model, prompt, 5, chunk=9) for prompt in PROMPTS]
    for one, mixed, pieces in zip(alone, together, chunked, strict=True):
        same(mixed.logits, one.logits, backend)
        same(pieces.logits, one.logits, backend)
        assert one.tokens == mixed.tokens == pieces.tokens


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_any_rows_of_logits(name: str, made: Callable[[Case], Made], bind: Bind, backend: str) -> None:
    checkpoint = made(next(c for c in CASES if c.name == name))
    model = bind(checkpoint.folder)
    prompt = PROMPTS[2]
    session = Session(model)
    rows = session.step([(session.start(prompt), len(prompt))], every_row=True)
    expected = checkpoint.logits(prompt, 1)
    assert np.abs(rows - expected).max() <= tolerance(expected)
    same(rows[-1:], greedy(model, prompt, 1).logits, backend)


@pytest.mark.parametrize("cache", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2"])
def test_lower_precision_stays_near(name: str, cache: str, made: Callable[[Case], Made], bind: Bind) -> None:
    # bfloat16 keeps 8 bits of each input: 0.4 % a product, of which sums leave a few per cent of the spread.
    checkpoint = made(next(c for c in CASES if c.name == name))
    model = bind(checkpoint.folder, Precision(activation="bfloat16", cache=cache))
    answer = greedy(model, PROMPTS[2], 1)
    expected = checkpoint.logits(PROMPTS[2], len(PROMPTS[2]))
    difference = np.abs(answer.logits - expected).max()
    assert 1e-4 < difference < 0.05 + 0.08 * expected.std()


@pytest.mark.parametrize("prefix", ["as saved", "language_model.model.", "model.language_model."])
def test_the_text_model_of_a_multimodal_wrapper(
    prefix: str, tmp_path_factory: pytest.TempPathFactory, bind: Bind
) -> None:
    checkpoint = make_wrapper(tmp_path_factory.mktemp("gemma3-wrapper"), prefix)
    answer = greedy(bind(checkpoint.folder), PROMPTS[2], 3)
    check_answer(answer, checkpoint.logits([*PROMPTS[2], *answer.tokens[:-1]], len(PROMPTS[2])))
