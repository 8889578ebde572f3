"""`LLM.embed`, `encode`, `classify` and `score` against transformers and sentence-transformers' rules."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pooling_files import sentence_transformer

from octavo import LLM, PoolingParams
from octavo.errors import BadRequest, ConfigError, PromptTooLong, UnsupportedModel
from octavo.llm import AsyncLLM

ORACLES = Path(__file__).parents[2] / "../shared/oracles/pooling"
TEXTS = ["hello world", "paris", "a b c d e f g h i j k l m n o p"]
CLOSE = {"atol": 2e-5, "rtol": 0}


def load(folder: Path, **more: Any) -> LLM:
    more = {"dtype": "float32", "kv_cache_memory_bytes": 8 << 20, "threads": 1, "quiet": True, **more}
    return LLM(str(folder), **more)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("backend", ["native", "numpy", "torch"])
@pytest.mark.skipif(not ORACLES.is_dir(), reason="../shared/oracles/pooling is not here")
@pytest.mark.parametrize("name", sorted(p.name for p in ORACLES.iterdir()) if ORACLES.is_dir() else ["none"])
def test_equals_the_golden_numbers(name: str, backend: str) -> None:
    golden = json.loads((ORACLES / name / "golden.json").read_text())
    llm = load(ORACLES / name, backend=backend)
    found = llm.embed([case["text"] for case in golden["cases"]])
    every = llm.encode(
        [case["text"] for case in golden["cases"]], PoolingParams(use_activation=False, task="token_embed")
    )
    for case, one, rows in zip(golden["cases"], found, every, strict=True):
        assert one.prompt_token_ids == case["input_ids"]
        np.testing.assert_allclose(one.outputs.embedding, case["embedding"], **CLOSE)
        for at, expected in (("cls", rows.outputs.data[0]), ("last", rows.outputs.data[-1])):
            np.testing.assert_allclose(expected, case[at], atol=1e-4)
        np.testing.assert_allclose(rows.outputs.data.mean(axis=0), case["mean"], atol=1e-4)


def test_a_batch_changes_nothing(folders: Any) -> None:
    llm = load(folders("embed").folder)
    together = llm.embed(TEXTS * 30)
    alone = [llm.embed(text)[0].outputs.embedding for text in TEXTS]
    for i, one in enumerate(together):
        assert one.outputs.embedding == alone[i % 3]
        assert np.linalg.norm(one.outputs.embedding) == pytest.approx(1, abs=1e-6)


def test_texts_that_a_step_has_no_room_for_wait(folders: Any) -> None:
    llm = load(folders("embed").folder, max_num_batched_tokens=100, max_num_seqs=16)
    texts = [" ".join("abcdefghijklmnopqrstuvwxyz"[: 1 + i * 7 % 26] * (1 + i % 3)) for i in range(60)]
    together = llm.embed(texts)
    for text, one in zip(texts, together, strict=True):
        assert one.outputs.embedding == llm.embed(text)[0].outputs.embedding


@pytest.mark.parametrize("rows", ["cls_token", "mean_tokens", "lasttoken"])
def test_sentence_transformers_files(rows: str, folders: Any, tmp_path: Path) -> None:
    made = folders("embed")
    folder = tmp_path / rows
    shutil.copytree(made.folder, folder)
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((24, 64), (24,)))
    sentence_transformer(folder, rows, normalize=rows == "cls_token", dense=(weight, bias, "Tanh"))
    (one,) = load(folder).embed(TEXTS[2])
    hidden = made.rows(one.prompt_token_ids)
    pooled = {"cls_token": hidden[0], "mean_tokens": hidden.mean(axis=0), "lasttoken": hidden[-1]}[rows]
    expected = np.tanh(weight @ pooled + bias)
    np.testing.assert_allclose(
        one.outputs.embedding, unit(expected) if rows == "cls_token" else expected, **CLOSE
    )


def test_unknown_modules_are_refused(folders: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(folders("embed").folder, folder)
    sentence_transformer(folder, "max_tokens")
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens"):
        load(folder)
    (folder / "modules.json").write_text(json.dumps([{"path": "../x", "type": "a.Pooling"}]))
    with pytest.raises(Exception, match="inside the folder"):
        load(folder)


def test_the_pooler_can_be_said(folders: Any) -> None:
    folder = folders("embed").folder
    [rows] = load(folder, pooler_config={"use_activation": False}).encode(
        TEXTS[0], pooling_task="token_embed"
    )
    data = rows.outputs.data
    for kind, row in (("MEAN", data.mean(axis=0)), ("cls", data[0]), ("LAST", data[-1])):
        [found] = load(folder, pooler_config={"pooling_type": kind}).embed(TEXTS[0])
        np.testing.assert_allclose(found.outputs.embedding, unit(row), **CLOSE)
    for wrong in ({"pooling_type": "X"}, {"kind": 1}):
        with pytest.raises(ConfigError, match="--pooler-config"):
            load(folder, pooler_config=wrong)


def test_dimensions_cut_before_the_norm(folders: Any) -> None:
    llm = load(folders("embed").folder)
    (whole,) = llm.embed("hello", PoolingParams(use_activation=False))
    (cut,) = llm.embed("hello", PoolingParams(dimensions=16))
    np.testing.assert_allclose(cut.outputs.embedding, unit(np.array(whole.outputs.embedding[:16])), **CLOSE)
    with pytest.raises(BadRequest, match="dimensions=65"):
        llm.embed("hello", PoolingParams(dimensions=65))


def test_labels(folders: Any) -> None:
    made = folders("labels")
    llm = load(made.folder)
    for one in llm.classify(TEXTS):
        scores = made.rows(one.prompt_token_ids)[0]
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(one.outputs.probs, expected, **CLOSE)
    with pytest.raises(BadRequest, match="no task 'embed'"):
        llm.embed("hello")
    with pytest.raises(BadRequest, match="3 labels"):
        llm.score("a", "b")
    with pytest.raises(BadRequest, match="does not generate"):
        llm.generate("hello")


def test_scores_of_pairs(folders: Any) -> None:
    made = folders("score")
    llm = load(made.folder)
    found = llm.score("hello world", ["paris", "a b c"])
    for one, ids in zip(found, ([1, 32, 33, 2, 34, 2], [1, 32, 33, 2, 6, 7, 8, 2]), strict=True):
        assert one.prompt_token_ids == ids
        types = [0] * 4 + [1] * (len(ids) - 4)
        expected = 1 / (1 + np.exp(-made.rows(ids, types)[0, 0]))
        assert one.outputs.score == pytest.approx(expected, abs=2e-5)
    (cut,) = llm.score("a b", "c d e f", tokenization_kwargs={"truncate_prompt_tokens": 7})
    assert cut.prompt_token_ids == [1, 6, 7, 2, 8, 9, 2]
    (older,) = llm.score("a b", "c d e f", truncate_prompt_tokens=7)
    assert older.prompt_token_ids == cut.prompt_token_ids
    with pytest.raises(BadRequest, match="no chat_template"):
        llm.score("a", "b", chat_template="{{ x }}")


def test_labels_of_tokens(folders: Any) -> None:
    made = folders("tokens")
    (one,) = load(made.folder).encode(TEXTS[0])
    scores = made.rows(one.prompt_token_ids)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(one.outputs.data, expected, **CLOSE)


@pytest.mark.parametrize("step", [None, 5])
def test_a_generative_model_gives_vectors(step: int | None, folders: Any) -> None:
    import torch

    made = folders("decoder")
    more = {} if step is None else {"max_num_batched_tokens": step, "max_num_seqs": 2}
    llm = load(made.folder, runner="pooling", **more)
    with torch.inference_mode():
        for one in llm.embed(TEXTS):
            hidden = made.model.model(torch.tensor([one.prompt_token_ids])).last_hidden_state[0].numpy()
            np.testing.assert_allclose(one.outputs.embedding, unit(hidden[-1]), **CLOSE)
        (rows,) = llm.encode(TEXTS[2], pooling_task="token_embed")
        hidden = made.model.model(torch.tensor([rows.prompt_token_ids])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(
        rows.outputs.data, hidden / np.linalg.norm(hidden, axis=1, keepdims=True), **CLOSE
    )


def test_shared_prefixes_are_computed_once(folders: Any) -> None:
    llm = load(folders("decoder").folder, runner="pooling")
    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 2)
    first, again = (llm.embed(text)[0] for _ in range(2))
    assert again.num_cached_tokens == 48
    np.testing.assert_array_equal(first.outputs.embedding, again.outputs.embedding)
    (whole,) = llm.encode(text, pooling_task="token_embed")
    assert whole.num_cached_tokens == 0


def test_a_reranker_made_of_two_tokens(folders: Any) -> None:
    import torch

    made = folders("decoder")
    overrides = {"classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True}
    llm = load(made.folder, runner="pooling", convert="score", hf_overrides=overrides)
    (one,) = llm.score("hello", "world")
    with torch.inference_mode():
        logits = made.model(torch.tensor([one.prompt_token_ids])).logits[0, -1].numpy()
    expected = 1 / (1 + np.exp(logits[5] - logits[4]))
    assert one.outputs.score == pytest.approx(expected, abs=2e-5)


def test_what_cannot_be(folders: Any) -> None:
    llm = load(folders("embed").folder)
    with pytest.raises(PromptTooLong, match="at most 96"):
        llm.embed("a " * 95)
    assert len(llm.embed("a " * 94)[0].prompt_token_ids) == 96
    cut = llm.embed("a " * 200, PoolingParams(truncate_prompt_tokens=-1))[0]
    assert cut.prompt_token_ids == [1, *[6] * 94, 2]
    assert llm.embed("a " * 200, truncate_prompt_tokens=-1)[0].prompt_token_ids == cut.prompt_token_ids
    for bad in ({"task": "reward"}, {"dimensions": 0}, {"truncate_prompt_tokens": -2}, {"step_tag_id": 3}):
        with pytest.raises(BadRequest):
            PoolingParams(**bad)
    with pytest.raises(BadRequest, match="no task 'classify'"):
        llm.classify("a")
    with pytest.raises(ConfigError, match="does not generate"):
        load(folders("embed").folder, runner="generate")
    with pytest.raises(ConfigError, match="no labels"):
        load(folders("embed").folder, convert="classify")
    with pytest.raises(BadRequest, match="generates text"):
        load(folders("decoder").folder).embed("hello")


def test_async_encode_gives_the_same(folders: Any) -> None:
    folder = folders("embed").folder
    expected = load(folder).embed(TEXTS[0])[0].outputs.embedding

    async def main() -> None:
        llm = AsyncLLM(str(folder), dtype="float32", kv_cache_memory_bytes=8 << 20, threads=1, quiet=True)
        found = [one async for one in llm.encode(TEXTS[0], PoolingParams(task="embed"), "mine")]
        assert [one.request_id for one in found] == ["mine"]
        assert found[0].outputs.data.tolist() == expected
        with pytest.raises(BadRequest):
            _ = [one async for one in llm.encode(TEXTS[0], PoolingParams(task="classify"))]
        await llm.shutdown()

    asyncio.run(asyncio.wait_for(main(), 30))
