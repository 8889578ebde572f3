"""SamplingParams: vLLM's defaults, its limits, and errors that name the field, the value and the range."""

from __future__ import annotations

import copy
import math
import pickle
import time
from typing import Any

import numpy as np
import pytest

from octavo.errors import BadRequest
from octavo.types.sampling import RequestOutputKind, SamplingParams

DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": [],
    "truncate_prompt_tokens": None,
}


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in DEFAULTS} == DEFAULTS


def test_positional_order_is_vllms() -> None:
    params = SamplingParams(2, 0.1, 0.2, 1.1, 0.5, 0.9, 40, 0.05, 7, "x")
    assert (params.n, params.presence_penalty, params.frequency_penalty) == (2, 0.1, 0.2)
    assert (params.repetition_penalty, params.temperature, params.top_p) == (1.1, 0.5, 0.9)
    assert (params.top_k, params.min_p, params.seed, params.stop) == (40, 0.05, 7, ["x"])


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("temperature", 0.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("min_p", 0.0, 1.0),
        ("n", 1, 16384),
        ("top_k", -1, 2**63 - 1),
        ("max_tokens", 1, 2**63 - 1),
        ("seed", -(2**63), 2**63 - 1),
        ("logprobs", -1, 2**31 - 1),
        ("prompt_logprobs", -1, 2**31 - 1),
        ("truncate_prompt_tokens", -1, 2**63 - 1),
        ("stream_interval", 1, 2**63 - 1),
    ],
)
def test_limits_hold_exactly(field: str, low: Any, high: Any) -> None:
    step = 1 if isinstance(low, int) else 0.001
    SamplingParams(**{field: low})
    SamplingParams(**{field: high})
    for value in (low - step, high + step):
        with pytest.raises(BadRequest, match=field) as caught:
            SamplingParams(**{field: value})
        assert caught.value.param == field
        assert repr(value) in str(caught.value)


def test_open_limits() -> None:
    SamplingParams(top_p=1.0)
    SamplingParams(top_p=1e-9)
    SamplingParams(repetition_penalty=1e-3)
    for kwargs in (
        {"top_p": 0.0},
        {"top_p": 1.0001},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
    ):
        with pytest.raises(BadRequest):
            SamplingParams(**kwargs)


NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "length_penalty",
)


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "1", True, None, [1.0], 10**400, np.zeros(2)]
)
def test_numbers_refuse_what_is_not_one(field: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", ["n", "top_k", "max_tokens", "min_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, "1", 2**63, 10**400, [1], np.zeros(2, int)])
def test_integers_refuse_what_is_not_one(field: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=field):
        SamplingParams(**{field: value})


def test_numbers_of_numpy_and_json_pass() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(5), max_tokens=16.0, top_p=1)  # type: ignore[arg-type]
    assert (params.temperature, params.top_k, params.max_tokens, params.top_p) == (0.5, 5, 16, 1.0)
    assert type(params.top_k) is type(params.max_tokens) is int
    assert type(params.temperature) is type(params.top_p) is float


def test_normal_forms() -> None:
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(seed=-2).seed == -2
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(logprobs=True).logprobs == 1
    assert SamplingParams(logprobs=False).logprobs is None
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams(temperature=1e-6).temperature == 0.01
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(logit_bias={"7": 300, 8: -1}).logit_bias == {7: 100.0, 8: -1.0}  # type: ignore[dict-item]
    assert SamplingParams(max_tokens=None).max_tokens is None


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": "a", "detokenize": False}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [True]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": "word"}, "bad_words"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
        ({"logprob_token_ids": [1.5]}, "logprob_token_ids"),
        ({"logprob_token_ids": [-1]}, "logprob_token_ids"),
        ({"logprob_token_ids": list(range(129))}, "logprob_token_ids"),
        ({"prompt_logprob_token_ids": 3}, "prompt_logprob_token_ids"),
        ({"prompt_logprob_token_ids": []}, "prompt_logprob_token_ids"),
        ({"prompt_logprob_token_ids": [[1], [-2]]}, "prompt_logprob_token_ids"),
        ({"prompt_logprob_token_ids": [1], "prompt_logprobs": 1}, "prompt_logprob_token_ids"),
        ({"prompt_logprob_start": -1}, "prompt_logprob_start"),
        ({"flat_logprobs": 1}, "flat_logprobs"),
        ({"logits_processors": ["module:Class"]}, "logits_processors"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"output_kind": 1}, "output_kind"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"n": 2, "temperature": 0}, "n"),
    ],
)
def test_bad_values_name_their_field(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=field) as caught:
        SamplingParams(**kwargs)
    assert caught.value.param == field
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"watermarking": {"key": 1}},
    ],
)
def test_features_that_are_not_there_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="not supported") as caught:
        SamplingParams(**kwargs)
    assert caught.value.param in kwargs


def test_tokens_named_for_logprobs() -> None:
    params = SamplingParams(logprobs=5, logprob_token_ids=[7, 3, 7])
    assert params.logprob_token_ids == [7, 3]
    assert params.num_logprobs == 2
    assert SamplingParams(logprob_token_ids=[], logprobs=5).num_logprobs == 5
    assert SamplingParams().num_logprobs is None
    assert SamplingParams(prompt_logprob_token_ids=[[1, 2], [3]]).prompt_logprob_token_ids == [
        [1, 2],
        [3, -1],
    ]


def test_best_of_is_at_least_n() -> None:
    assert SamplingParams(n=2, best_of=4).best_of == 4
    with pytest.raises(BadRequest, match="best_of=1 is less than n=2"):
        SamplingParams(n=2, best_of=1)


def test_neutral_values_of_older_fields_pass() -> None:
    params = SamplingParams(
        n=2,
        best_of=2,
        use_beam_search=False,
        early_stopping=True,
        length_penalty=0.9,
        guided_decoding=None,
        logits_processors=[],
        truncate_prompt_tokens=8,
    )
    assert params.truncate_prompt_tokens == 8


def test_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temperatur"):
        SamplingParams(temperatur=1)  # type: ignore[call-arg]


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(stop=5 * [{"x": "y" * 1000}])  # type: ignore[list-item]
    assert len(str(caught.value)) < 200
    with pytest.raises(BadRequest, match="very long int"):
        SamplingParams(top_k=10**5000)


def test_from_optional_fills_from_defaults_and_class() -> None:
    params = SamplingParams.from_optional(
        {"temperature": 0.6, "top_k": 20}, temperature=None, top_p=0.9, seed=None
    )
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.6, 20, 0.9, 16)
    assert SamplingParams.from_optional(max_tokens=None).max_tokens is None


def test_clone_shares_nothing_mutable() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 2.0}, stop_token_ids=[3], extra_args={"k": 1})
    other = params.clone()
    assert other == params
    assert isinstance(other.stop, list)
    other.stop.append("b")
    assert other.logit_bias is not None
    other.logit_bias[5] = 1.0
    assert params.stop == ["a"]
    assert params.logit_bias == {1: 2.0}
    assert copy.deepcopy(params) == params
    assert pickle.loads(pickle.dumps(params)) == params  # noqa: S301


def test_the_callers_list_is_not_kept() -> None:
    stop = ["a"]
    params = SamplingParams(stop=stop)
    stop.append("")
    assert params.stop == ["a"]


def test_a_changed_field_is_checked_by_verify() -> None:
    params = SamplingParams()
    params.temperature = math.nan
    with pytest.raises(BadRequest, match="temperature"):
        params.verify()


def test_repr_shows_what_was_set() -> None:
    shown = repr(SamplingParams(temperature=0.7, max_tokens=512))
    assert "temperature=0.7" in shown
    assert "max_tokens=512" in shown
    assert "min_p" not in shown


def test_construction_is_cheap() -> None:
    best = math.inf
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(50):
            SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=512)
        best = min(best, (time.perf_counter() - begun) / 50)
    assert best < 20e-6
