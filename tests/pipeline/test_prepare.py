"""The Preparer decides everything about a job or refuses it with the numbers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from octavo.config.generation import GenerationConfig
from octavo.errors import BadRequest, PromptTooLong
from octavo.pipeline.prepare import ModelInfo, Preparer
from octavo.pipeline.stop import EndTokens
from octavo.pipeline.template import ChatTemplate
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import EngineRequest, Finish, TokenOut
from octavo.types.job import ChatOptions, Job
from octavo.types.sampling import SamplingParams

INFO = ModelInfo(names=("pocket",), max_model_len=64, vocab_size=1000)


def make(tokenizer: Tokenizer | None, info: ModelInfo = INFO, **options: Any) -> Preparer:
    template = ChatTemplate(tokenizer.config["chat_template"]) if tokenizer is not None else None
    options.setdefault("ends", EndTokens(2, (0, 1)))
    options.setdefault("seed", 0)
    return Preparer(tokenizer, template, GenerationConfig(), info, **options)


@pytest.fixture
def preparer(byte_tokenizer: Tokenizer) -> Preparer:
    return make(byte_tokenizer)


def job(prompt: str | None = "the sky", sampling: SamplingParams | None = None, **fields: Any) -> Job:
    return Job(id="j", sampling=sampling or SamplingParams(), prompt=prompt, **fields)


def ids_job(ids: list[int], sampling: SamplingParams | None = None) -> Job:
    return job(None, sampling, prompt_ids=tuple(ids))


def one(preparer: Preparer, sampling: SamplingParams, **fields: Any) -> EngineRequest:
    return preparer.prepare(job(sampling=sampling, **fields)).requests[0]


def test_a_prompt_becomes_one_request(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    prepared = preparer.prepare(job(priority=3, salt="s"), arrival_s=5.0)
    assert prepared.started.prompt == "the sky"
    assert prepared.started.prompt_ids == tuple(byte_tokenizer.encode("the sky"))
    (request,) = prepared.requests
    assert (request.id, request.priority, request.salt, request.arrival_s) == ("j", 3, "s", 5.0)
    assert request.prompt == prepared.started.prompt_ids
    assert [text.index for text in prepared.texts] == [0]


def test_a_chat_is_rendered(preparer: Preparer) -> None:
    prepared = preparer.prepare(job(None, messages=({"role": "user", "content": "hi"},)))
    assert prepared.started.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_template_kwargs_of_the_server_are_under_the_clients(byte_tokenizer: Tokenizer) -> None:
    preparer = make(byte_tokenizer, chat_template_kwargs={"a": "server", "b": "server"})
    chat = ChatOptions(template="{{ a }} {{ b }}", kwargs={"a": "client"})
    prepared = preparer.prepare(job(None, messages=({"role": "user", "content": "x"},), chat=chat))
    assert prepared.started.prompt == "client server"


def test_no_template_is_an_error_with_the_fix(byte_tokenizer: Tokenizer) -> None:
    preparer = Preparer(byte_tokenizer, None, GenerationConfig(), INFO)
    with pytest.raises(BadRequest, match="--chat-template"):
        preparer.prepare(job(None, messages=({"role": "user", "content": "x"},)))


def test_add_special_tokens(piece_tokenizer: Tokenizer) -> None:
    preparer = Preparer(piece_tokenizer, None, GenerationConfig(), INFO)
    bos = piece_tokenizer.bos_id
    assert preparer.prepare(job()).started.prompt_ids[0] == bos
    assert preparer.prepare(job(add_special_tokens=False)).started.prompt_ids[0] != bos


@pytest.mark.parametrize("ids", [[], [-1], [1000], [3, 10**9]])
def test_impossible_ids(preparer: Preparer, ids: list[int]) -> None:
    with pytest.raises(BadRequest) as caught:
        preparer.prepare(ids_job(ids))
    assert caught.value.param == "prompt"


def test_an_empty_text_prompt(preparer: Preparer) -> None:
    with pytest.raises(BadRequest, match="empty"):
        preparer.prepare(job(""))


def test_a_lone_surrogate_is_refused(preparer: Preparer) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        preparer.prepare(job("a\ud800"))


def test_too_long_says_both_numbers(preparer: Preparer) -> None:
    with pytest.raises(PromptTooLong) as caught:
        preparer.prepare(ids_job([5] * 64))
    assert (caught.value.got_tokens, caught.value.limit_tokens) == (64, 63)
    assert preparer.prepare(ids_job([5] * 63)).requests[0].sampling.max_tokens == 1


def test_truncate_prompt_tokens(byte_tokenizer: Tokenizer) -> None:
    ids = list(range(3, 103))
    params = SamplingParams(truncate_prompt_tokens=10)
    assert make(byte_tokenizer).prepare(ids_job(ids, params)).started.prompt_ids == tuple(ids[-10:])
    right = make(byte_tokenizer, truncation_side="right")
    assert right.prepare(ids_job(ids, params)).started.prompt_ids == tuple(ids[:10])
    fit = SamplingParams(truncate_prompt_tokens=-1, max_tokens=14)
    assert len(make(byte_tokenizer).prepare(ids_job(ids, fit)).started.prompt_ids) == 50
    for bad in (64, 0):
        with pytest.raises(BadRequest) as caught:
            make(byte_tokenizer).prepare(ids_job(ids, SamplingParams(truncate_prompt_tokens=bad)))
        assert caught.value.param == "truncate_prompt_tokens"


def test_max_tokens(byte_tokenizer: Tokenizer) -> None:
    preparer = make(byte_tokenizer)

    def limit(params: SamplingParams, **fields: Any) -> tuple[int, bool]:
        made = preparer.prepare(job(None, params, prompt_ids=(5,) * 10, **fields))
        return made.requests[0].sampling.max_tokens, made.unbounded

    assert limit(SamplingParams(max_tokens=None)) == (54, True)
    assert limit(SamplingParams(max_tokens=None), default_max_tokens=7) == (7, True)
    assert limit(SamplingParams(max_tokens=20)) == (20, False)
    assert limit(SamplingParams(max_tokens=60)) == (54, False), "what does not fit is cut"
    with pytest.raises(BadRequest, match="65"):
        limit(SamplingParams(max_tokens=65))
    capped = make(byte_tokenizer, default_max_tokens=9)
    model = Preparer(byte_tokenizer, None, GenerationConfig(max_tokens=5), INFO)
    made = model.prepare(ids_job([5], SamplingParams(max_tokens=None)))
    assert (made.requests[0].sampling.max_tokens, made.unbounded) == (5, True)
    assert capped.prepare(ids_job([5], SamplingParams(max_tokens=None))).requests[0].sampling.max_tokens == 9


def test_every_field_reaches_the_engine(preparer: Preparer) -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=5000,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        min_tokens=2,
        max_tokens=5,
        logprobs=3,
        prompt_logprobs=1,
        seed=7,
        stop_token_ids=[9, 0],
        logit_bias={4: 200.0},
        allowed_token_ids=[4, 5, 4],
    )
    spec = one(preparer, params).sampling
    assert (spec.temperature, spec.top_p, spec.top_k, spec.min_p) == (0.5, 0.9, 1000, 0.1)
    assert (spec.presence_penalty, spec.frequency_penalty, spec.repetition_penalty) == (0.2, 0.3, 1.1)
    assert (spec.min_tokens, spec.max_tokens, spec.logprobs, spec.prompt_logprobs, spec.seed) == (
        2,
        5,
        3,
        1,
        7,
    )
    assert (spec.eos_id, spec.end_ids) == (2, (9, 0, 1))
    assert (spec.logit_bias, spec.allowed_ids) == (((4, 100.0),), (4, 5))


def test_ignore_eos_keeps_only_the_users_stops(preparer: Preparer) -> None:
    spec = one(preparer, SamplingParams(ignore_eos=True, stop_token_ids=[9])).sampling
    assert (spec.eos_id, spec.end_ids) == (None, (9,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop_token_ids", [1000]),
        ("allowed_token_ids", [1000]),
        ("logit_bias", {1000: 1.0}),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_what_the_model_does_not_have(preparer: Preparer, field: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        one(preparer, SamplingParams(**{field: value}))
    assert caught.value.param == field


def test_whole_vocabulary_where_allowed_but_not_without_bound(byte_tokenizer: Tokenizer) -> None:
    info = ModelInfo(names=("m",), max_model_len=100_000, vocab_size=150_000, max_logprobs=-1)
    preparer = make(byte_tokenizer, info)
    assert one(preparer, SamplingParams(logprobs=-1, max_tokens=5)).sampling.logprobs == -1
    with pytest.raises(BadRequest, match="log-probabilities"):
        one(preparer, SamplingParams(logprobs=-1, max_tokens=5000))


def test_bad_words_with_and_without_a_space(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    spec = one(preparer, SamplingParams(bad_words=["sky", " sky"])).sampling
    assert spec.bad_words == (tuple(byte_tokenizer.encode("sky")), tuple(byte_tokenizer.encode(" sky")))


@pytest.mark.parametrize("field", ["stop", "bad_words"])
@pytest.mark.parametrize("texts", [["a"] * 257, ["a" * 16_385]])
def test_ceilings_on_texts(preparer: Preparer, field: str, texts: list[str]) -> None:
    with pytest.raises(BadRequest, match="limit") as caught:
        one(preparer, SamplingParams(**{field: texts}))
    assert caught.value.param == field


def test_seeds_are_own_per_sequence_and_reproducible(byte_tokenizer: Tokenizer) -> None:
    made = make(byte_tokenizer).prepare(job(sampling=SamplingParams(n=3, seed=5)))
    assert [r.sampling.seed for r in made.requests] == [5, 6, 7]
    assert [r.id for r in made.requests] == ["j-0", "j-1", "j-2"]
    assert [t.index for t in made.texts] == [0, 1, 2]
    negative = make(byte_tokenizer).prepare(job(sampling=SamplingParams(seed=-5))).requests[0].sampling.seed
    assert 0 <= negative < 2**63
    drawn = [
        [one(p, SamplingParams()).sampling.seed for _ in range(3)]
        for p in (make(byte_tokenizer), make(byte_tokenizer))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert one(make(byte_tokenizer, seed=1), SamplingParams()).sampling.seed not in drawn[0]


def test_best_of_runs_more_and_asks_for_logprobs(preparer: Preparer) -> None:
    params = SamplingParams(n=2)
    params.best_of = 4
    made = preparer.prepare(job(sampling=params))
    assert (len(made.requests), made.n, made.best_of, made.strip_logprobs) == (4, 2, True, True)
    assert all(r.sampling.logprobs == 0 for r in made.requests)


def test_max_tokens_zero_runs_one_token_and_hides_it(preparer: Preparer) -> None:
    params = SamplingParams()
    params.max_tokens = 0
    made = preparer.prepare(job(sampling=params))
    assert made.requests[0].sampling.max_tokens == 1
    event = made.texts[0].push(TokenOut(id="j", tokens=(5,)))
    assert event is not None
    assert (event.tokens, event.finish) == ((), Finish("length"))


def test_the_loop_guard_is_for_open_ends_only(byte_tokenizer: Tokenizer) -> None:
    def guarded(params: SamplingParams, **options: Any) -> bool:
        info = ModelInfo(names=("m",), max_model_len=4000, vocab_size=1000)
        made = make(byte_tokenizer, info, **options).prepare(job(sampling=params))
        events = [made.texts[0].push(TokenOut(id="j", tokens=(70,))) for _ in range(400)]
        return any(event is not None and event.finish is not None for event in events)

    assert guarded(SamplingParams(max_tokens=None))
    assert not guarded(SamplingParams(max_tokens=1000))
    assert not guarded(SamplingParams(max_tokens=None), loop_guard=False)
    assert not guarded(SamplingParams(max_tokens=None, ignore_eos=True))


def test_without_a_tokenizer_ids_work_and_text_does_not() -> None:
    preparer = make(None)
    assert preparer.prepare(ids_job([5])).requests[0].prompt == (5,)
    for wrong in (job(), job(None, messages=({"role": "user", "content": "x"},)), job(None)):
        with pytest.raises(BadRequest):
            preparer.prepare(wrong)
    with pytest.raises(BadRequest, match="Stop strings"):
        preparer.prepare(ids_job([5], SamplingParams(stop=["x"])))
    with pytest.raises(BadRequest, match="bad_words"):
        preparer.prepare(ids_job([5], SamplingParams(bad_words=["x"])))


def test_preparing_is_cheap(preparer: Preparer) -> None:
    made = job()
    preparer.prepare(made)
    begun = time.perf_counter()
    for _ in range(50):
        preparer.prepare(made)
    assert (time.perf_counter() - begun) / 50 < 5e-3
