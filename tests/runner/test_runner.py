"""Plans to arrays, and answers back to the right sequence."""

from __future__ import annotations

import numpy as np
import pytest
from engine_fakes import Choice

from octavo.errors import StepFailed
from octavo.ops.contract import Limits
from octavo.parallel.inline import InlineExecutor
from octavo.runner.arrays import Rows
from octavo.runner.runner import Runner
from octavo.types.engine import NewSequence, SamplingSpec, StepPlan, TokenLogprobs, Work

LIMITS = Limits(tokens=64, sequences=4, logit_rows=32, block_size=4, max_model_len=32)
SPEC = SamplingSpec(max_tokens=5)
SPEC_PROMPT = SamplingSpec(max_tokens=5, prompt_logprobs=2)


def new(key: int, tokens: list[int], prompt: int | None = None, spec: SamplingSpec = SPEC) -> NewSequence:
    size = len(tokens) if prompt is None else prompt
    return NewSequence(key=key, prompt_tokens=size, tokens=tuple(tokens), sampling=spec)


def test_batch_of_a_chunk_a_decode_and_a_last_token():
    rows = Rows(LIMITS)
    for each in (new(2, [10, 11, 12, 13, 14, 15, 16]), new(0, [20, 21, 22], prompt=2), new(3, [30, 31])):
        rows.add(each)
    plan = StepPlan(
        work=(
            Work(2, 0, 5, (7, 8), False),
            Work(0, 2, 1, (5,), True),
            Work(3, 0, 2, (1,), True),
        )
    )
    made = rows.arrays(plan)
    batch = made.batch
    assert batch.token_ids.tolist() == [10, 11, 12, 13, 14, 22, 30, 31]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 2, 0, 1]
    assert batch.rope_lens.tolist() == [7, 7, 7, 7, 7, 3, 2, 2]
    assert batch.seq_starts.tolist() == [0, 5, 6, 8]
    assert batch.context_lens.tolist() == [5, 3, 2]
    assert batch.block_tables.tolist() == [[7, 8], [5, 0], [1, 0]]
    assert batch.logit_rows.tolist() == [5, 7]
    assert made.sampling == [1, 2]
    assert made.keys == [0, 3]
    for array in (batch.token_ids, batch.positions, batch.rope_lens, batch.seq_starts, batch.context_lens):
        assert array.dtype == np.int32
    assert batch.block_tables.flags.c_contiguous
    assert batch.logit_rows.dtype == batch.block_tables.dtype == np.int32


def test_blocks_add_up_and_decodes_use_the_newest_token():
    rows = Rows(LIMITS)
    rows.add(new(1, [1, 2, 3, 4]))
    rows.arrays(StepPlan(work=(Work(1, 0, 4, (3,), True),)))
    rows.push(1, 40)
    batch = rows.arrays(StepPlan(work=(Work(1, 4, 1, (9,), True),))).batch
    assert batch.token_ids.tolist() == [40]
    assert batch.block_tables.tolist() == [[3, 9]]
    assert batch.rope_lens.tolist() == [5]
    rows.add(new(1, [5]))
    batch = rows.arrays(StepPlan(work=(Work(1, 0, 1, (2,), True),))).batch
    assert batch.token_ids.tolist() == [5]
    assert batch.block_tables.tolist() == [[2]]


def test_rows_of_prompt_logprobs():
    rows = Rows(LIMITS)
    rows.add(new(0, [1, 2, 3, 4, 5], spec=SPEC_PROMPT))
    rows.add(new(1, [6, 7]))
    made = rows.arrays(StepPlan(work=(Work(1, 0, 2, (0,), True), Work(0, 0, 3, (1, 2), False))))
    assert made.batch.logit_rows.tolist() == [1, 2, 3, 4]
    assert made.sample_rows.tolist() == [0]
    (part,) = made.prompts
    assert (part.at, part.first, part.given.tolist(), part.k) == (1, 1, [2, 3, 4], 2)
    made = rows.arrays(StepPlan(work=(Work(0, 3, 2, (), True),)))
    assert made.batch.logit_rows.tolist() == [0, 1]
    assert made.sample_rows.tolist() == [1]
    assert made.prompts[0].given.tolist() == [5]
    made = rows.arrays(StepPlan(work=(Work(0, 5, 1, (), True),)))
    assert made.batch.logit_rows.tolist() == [0]
    assert made.prompts == []
    assert made.sample_rows is None


def test_rows_of_prompt_logprobs_from_a_later_token_on():
    rows = Rows(LIMITS)
    ids = ((7, 8), (9, -1))
    spec = SamplingSpec(max_tokens=1, prompt_logprobs=0, prompt_logprob_start=2, prompt_logprob_ids=ids)
    rows.add(new(0, [1, 2, 3, 4, 5], spec=spec))
    made = rows.arrays(StepPlan(work=(Work(0, 0, 2, (1, 2), False),)))
    assert made.batch.logit_rows.tolist() == []
    made = rows.arrays(StepPlan(work=(Work(0, 1, 2, (), False),)))
    assert made.batch.logit_rows.tolist() == [1]
    (part,) = made.prompts
    assert (part.given.tolist(), part.wanted.tolist()) == ([4], [[7, 8]])
    made = rows.arrays(StepPlan(work=(Work(0, 3, 2, (), True),)))
    assert made.batch.logit_rows.tolist() == [0, 1]
    assert made.prompts[0].wanted.tolist() == [[9, -1]]


class Model:
    """Row r of the logits holds the wanted token's index r."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def allocate_cache(self, blocks: int) -> None: ...

    def forward(self, batch):
        self.calls += 1
        if self.error is not None:
            raise self.error
        logits = np.zeros((len(batch.logit_rows), 6), np.float32)
        logits[:] = batch.logit_rows[:, None]
        return logits


class Recorder:
    """A sampler that answers with the value in its logits and writes down what it was told."""

    def __init__(self) -> None:
        self.log: list[tuple] = []

    def add(self, row, spec, prompt, output, grammar=None):
        self.log.append(("add", row, tuple(prompt), tuple(output)))

    def remove(self, row):
        self.log.append(("remove", row))

    def sample(self, logits, rows):
        self.log.append(("sample", tuple(rows)))
        return [
            Choice(int(line[0]), TokenLogprobs((row,), (0.0,), (1,)) if row else None)
            for line, row in zip(logits, rows, strict=True)
        ]

    def prompt_logprobs(self, logits, given, k, wanted=None):
        return [TokenLogprobs((g, int(r[0])), (0.0, 0.0), (k, k)) for r, g in zip(logits, given, strict=True)]


@pytest.fixture
def parts():
    model, sampler = Model(), Recorder()
    return Runner(model, LIMITS, 6, sampler), model, sampler


def test_answers_stand_in_the_order_of_the_work(parts):
    runner, _, sampler = parts
    result = runner.run(
        StepPlan(
            new=(new(1, [1, 2, 3, 4], spec=SPEC_PROMPT), new(0, [5, 6, 7], prompt=2), new(2, [8, 9])),
            work=(Work(1, 0, 4, (0,), True), Work(2, 0, 1, (1,), False), Work(0, 2, 1, (2,), True)),
        )
    )
    first, second, third = result.sampled
    assert (first.key, first.tokens) == (1, (3,))
    assert [entry.ids for entry in first.prompt_logprobs] == [(2, 0), (3, 1), (4, 2)]
    assert first.logprobs[0].ids == (1,)
    assert (second.key, second.tokens) == (2, ())
    assert (third.key, third.tokens, third.logprobs) == (0, (5,), ())
    assert ("add", 0, (5, 6), (7,)) in sampler.log
    assert result.arrays_s > 0
    assert result.forward_s > 0
    assert result.sample_s > 0


def test_a_step_that_samples_nothing_does_not_call_the_sampler(parts):
    runner, _, sampler = parts
    runner.run(StepPlan(new=(new(0, [1, 2, 3]),), work=(Work(0, 0, 2, (0,), False),)))
    assert [entry[0] for entry in sampler.log] == ["add"]


def test_ended_comes_before_new_and_unknown_keys_are_nothing(parts):
    runner, model, sampler = parts
    work = (Work(0, 0, 1, (0,), True),)
    runner.run(StepPlan(new=(new(0, [1]),), work=work))
    runner.run(StepPlan(ended=(0, 3), new=(new(0, [2]),), work=work))
    assert [entry[:2] for entry in sampler.log if entry[0] != "sample"] == [
        ("add", 0),
        ("remove", 0),
        ("add", 0),
    ]
    calls = model.calls
    assert runner.run(StepPlan(ended=(0,))).sampled == ()
    assert model.calls == calls
    assert sampler.log[-1] == ("remove", 0)


def test_a_row_that_cannot_be_sampled_fails_alone(parts):
    runner, _, sampler = parts
    sampler.sample = lambda logits, rows: [Choice(-1, error="no token is allowed"), Choice(4)]
    plan = StepPlan(
        new=(new(0, [1]), new(1, [2])), work=(Work(0, 0, 1, (0,), True), Work(1, 0, 1, (1,), True))
    )
    bad, good = runner.run(plan).sampled
    assert (bad.tokens, bad.error) == ((), "no token is allowed")
    assert (good.tokens, good.error) == ((4,), None)


def test_inline_executor_says_which_failures_are_the_steps_own(parts):
    runner, model, _ = parts
    executor = InlineExecutor(runner)
    plan = StepPlan(new=(new(0, [1]),), work=(Work(0, 0, 1, (0,), True),))
    model.error = ValueError("odd")
    with pytest.raises(StepFailed, match="ValueError: odd") as caught:
        executor.run(plan)
    assert isinstance(caught.value.__cause__, ValueError)
    model.error = None
    assert executor.run(StepPlan(ended=(0,), new=plan.new, work=plan.work)).sampled[0].tokens == (0,)
    model.error = SystemExit()
    with pytest.raises(SystemExit):
        executor.run(StepPlan(ended=(0,), new=plan.new, work=plan.work))
