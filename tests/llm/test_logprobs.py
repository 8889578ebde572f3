"""Log-probabilities of tokens that a script names, and the flat form of them; on the bundled model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import BadRequest
from octavo.types.beam import BeamSearchParams
from octavo.types.logprobs import FlatLogprobs, Logprob

pytest.importorskip("octavo._native", reason="the extension is not built")

PROMPT = "The sky is blue and the grass is"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", max_model_len=128, max_logprobs=-1, max_num_batched_tokens=16)


def answer(llm: LLM, **fields: Any) -> Any:
    given = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, **fields}
    return llm.generate(PROMPT, SamplingParams(**given))[0]


def test_named_tokens_have_the_values_and_ranks_of_the_whole_vocabulary(llm: LLM) -> None:
    whole = answer(llm, logprobs=-1).outputs[0]
    ids = [300, 5, 17, 5]
    named = answer(llm, logprob_token_ids=ids, logprobs=2).outputs[0]
    assert named.token_ids == whole.token_ids
    for token, few, all_of_them in zip(named.token_ids, named.logprobs, whole.logprobs, strict=True):
        assert list(few) == list(dict.fromkeys([token, 300, 5, 17])), (
            "the chosen one, then as they were named"
        )
        for one, found in few.items():
            assert found.logprob == pytest.approx(all_of_them[one].logprob, abs=1e-5)
            assert found.rank == all_of_them[one].rank
            assert found.decoded_token == all_of_them[one].decoded_token
    assert named.cumulative_logprob == pytest.approx(whole.cumulative_logprob, abs=1e-4)


def test_best_of_with_named_tokens_keeps_them(llm: LLM) -> None:
    found = answer(llm, logprob_token_ids=[5], n=1, best_of=3, temperature=1.0, seed=1)
    assert all(5 in position for position in found.outputs[0].logprobs)


@pytest.mark.parametrize("start", [0, 3])
def test_named_tokens_along_the_prompt(llm: LLM, start: int) -> None:
    whole = answer(llm, prompt_logprobs=-1).prompt_logprobs
    rows = len(whole) - 1 - start
    ids = [[position, 9, 300] for position in range(rows)]
    ids[0] = [4]
    found = answer(llm, prompt_logprob_token_ids=ids, prompt_logprob_start=start)
    assert found.prompt_logprobs is None
    scores = found.prompt_token_id_logprobs
    assert scores.shape == (rows, 3)
    assert scores.dtype == np.float32
    assert scores[0, 1] == scores[0, 2] == -np.inf, "a row that was filled up"
    for row, named in enumerate(ids):
        wanted = [whole[start + row + 1][token].logprob for token in named]
        np.testing.assert_allclose(scores[row, : len(named)], wanted, atol=1e-5)


def test_one_list_of_named_tokens_for_the_whole_prompt(llm: LLM) -> None:
    whole = answer(llm, prompt_logprobs=-1).prompt_logprobs
    scores = answer(llm, prompt_logprob_token_ids=np.array([7, 8])).prompt_token_id_logprobs
    wanted = [[position[7].logprob, position[8].logprob] for position in whole[1:]]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_prompt_logprobs_from_a_later_token_on(llm: LLM) -> None:
    whole = answer(llm, prompt_logprobs=1).prompt_logprobs
    cut = answer(llm, prompt_logprobs=1, prompt_logprob_start=4).prompt_logprobs
    assert cut[:5] == [None] * 5
    assert [list(one) for one in cut[5:]] == [list(one) for one in whole[5:]]


def test_what_cannot_be_told_is_refused(llm: LLM) -> None:
    for fields, field in [
        ({"logprob_token_ids": [10**6]}, "logprob_token_ids"),
        ({"prompt_logprob_token_ids": [[1]]}, "prompt_logprob_token_ids"),
        ({"prompt_logprob_token_ids": [10**6]}, "prompt_logprob_token_ids"),
        ({"prompt_logprobs": 1, "prompt_logprob_start": 100}, "prompt_logprob_start"),
    ]:
        with pytest.raises(BadRequest) as caught:
            answer(llm, **fields)
        assert caught.value.param == field


def test_flat_logprobs_say_the_same(llm: LLM) -> None:
    plain = answer(llm, logprobs=2, prompt_logprobs=1)
    flat = answer(llm, logprobs=2, prompt_logprobs=1, flat_logprobs=True)
    found = flat.outputs[0].logprobs
    assert isinstance(found, FlatLogprobs)
    assert list(found) == plain.outputs[0].logprobs
    assert flat.outputs[0].cumulative_logprob == plain.outputs[0].cumulative_logprob
    assert isinstance(flat.prompt_logprobs, FlatLogprobs)
    assert flat.prompt_logprobs[0] == {}
    assert list(flat.prompt_logprobs)[1:] == plain.prompt_logprobs[1:]


def test_flat_logprobs_of_a_stream_are_deltas(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=1, flat_logprobs=True)
    pieces = [one.outputs[0] for one in llm.generate(PROMPT, params, stream=True)]
    joined = FlatLogprobs()
    for piece in pieces:
        joined.extend(piece.logprobs)
    assert joined == llm.generate(PROMPT, params)[0].outputs[0].logprobs


def test_flat_logprobs_are_a_list_that_only_grows() -> None:
    flat = FlatLogprobs()
    flat.append({4: Logprob(-1.0, 2, "a"), 5: Logprob(-0.5, 1, "b")})
    flat.append(None)
    flat.append_fast([6], [-2.0], [3], ["c"])
    assert (flat.start_indices, flat.end_indices) == ([0, 2, 2], [2, 2, 3])
    assert flat.token_ids == [4, 5, 6]
    assert flat[-1] == {6: Logprob(-2.0, 3, "c")}
    assert flat[1] == {}
    assert list(flat[:2]) == [flat[0], flat[1]]
    assert len(flat) == 3
    with pytest.raises(IndexError):
        flat[3]
    for change in (lambda: flat.insert(0, None), lambda: flat.pop(), lambda: flat.__setitem__(0, {})):
        with pytest.raises(TypeError, match="only appended"):
            change()


def test_modes_of_logprobs_through_the_llm() -> None:
    def fold(token: Any, logits: Any) -> Any:
        return -logits

    found = {}
    for mode in ("raw_logprobs", "raw_logits", "processed_logits", "processed_logprobs"):
        llm = LLM(device="cpu", max_model_len=128, logprobs_mode=mode, max_logprobs=-1)
        params = SamplingParams(max_tokens=1, temperature=0.5, top_k=1, logprobs=-1, logits_processors=[fold])
        found[mode] = llm.generate(PROMPT, params)[0].outputs[0]
        assert len(llm.beam_search(PROMPT, BeamSearchParams(beam_width=2, max_tokens=2))[0].sequences) == 2
    (token,) = found["raw_logits"].token_ids
    raw = {one: told.logprob for one, told in found["raw_logits"].logprobs[0].items()}
    assert raw[token] == min(raw.values()), "the processor turned the order around"
    assert found["processed_logits"].logprobs[0][token].logprob == pytest.approx(-raw[token] / 0.5, rel=1e-5)
    assert found["processed_logprobs"].logprobs[0][token].logprob == 0.0
    total = np.log(np.exp(np.array(list(raw.values()))).sum())
    assert found["raw_logprobs"].logprobs[0][token].logprob == pytest.approx(raw[token] - total, abs=1e-4)
