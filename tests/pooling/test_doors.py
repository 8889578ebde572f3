"""The pooling doors over a real engine: OpenAI's client, vLLM's routes, errors that say why."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from pooling_files import sentence_transformer
from running import Running, serving

from octavo import LLM


def server(folder: Any, **more: Any) -> Running:
    return serving({"served_names": ("模型",)}, model=str(folder), dtype="float32", **more)


@pytest.fixture(scope="module")
def embedder(folders: Any) -> Iterator[Running]:
    with server(folders("embed").folder) as running:
        yield running


def vectors(folder: Any, texts: list[str], **more: Any) -> list[list[float]]:
    llm = LLM(str(folder), dtype="float32", kv_cache_memory_bytes=8 << 20, threads=1, quiet=True, **more)
    return [one.outputs.embedding for one in llm.embed(texts)]


def post(running: Running, path: str, body: Any, status: int = 200) -> Any:
    response = httpx.post(f"{running.url}{path}", json=body, timeout=20)
    assert response.status_code == status, response.text
    return response.json()


def test_the_openai_client(embedder: Running, folders: Any) -> None:
    client = openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)
    texts = ["hello world", "paris"]
    expected = vectors(folders("embed").folder, texts)
    model = client.models.list().data[0].id
    for more in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
        found = client.embeddings.create(model=model, input=texts, **more)  # type: ignore[arg-type]
        assert [one.index for one in found.data] == [0, 1]
        np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-6)
        assert found.usage.prompt_tokens == found.usage.total_tokens == 7
    ids = client.embeddings.create(model=model, input=[1, 32, 33, 2])
    np.testing.assert_allclose(ids.data[0].embedding, expected[0], atol=1e-6)
    assert len(client.embeddings.create(model=model, input=[[1, 6, 2], [1, 7, 2]]).data) == 2
    assert len(client.embeddings.create(model=model, input="a", dimensions=8).data[0].embedding) == 8


def test_numbers_as_bytes(embedder: Running) -> None:
    whole = np.array(post(embedder, "/v1/embeddings", {"input": "hello"})["data"][0]["embedding"], np.float32)
    body = {"input": "hello", "encoding_format": "base64", "embed_dtype": "float16", "endianness": "big"}
    raw = base64.b64decode(post(embedder, "/v1/embeddings", body)["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, ">f2"), whole.astype(np.float16))
    raw = httpx.post(
        f"{embedder.url}/v1/embeddings",
        json={"input": ["hello", "world"], "encoding_format": "bytes_only", "embed_dtype": "bfloat16"},
    ).content
    told = httpx.post(f"{embedder.url}/v1/embeddings", json={"input": "a", "encoding_format": "bytes"})
    metadata = json.loads(told.headers["metadata"])
    assert (metadata["model"], metadata["data"][0]["end"]) == ("模型", len(told.content))
    assert metadata["usage"]["prompt_tokens"] == 3
    widened = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(widened[:64], whole, rtol=2**-8)


def test_pooling_and_scores_of_vectors(embedder: Running) -> None:
    found = post(embedder, "/pooling", {"input": "hello world", "task": "token_embed"})
    assert np.array(found["data"][0]["data"]).shape == (4, 64)
    scored = post(embedder, "/score", {"text_1": "hello", "text_2": ["hello", "paris"]})
    assert [one["object"] for one in scored["data"]] == ["score", "score"]
    assert scored["data"][0]["score"] == pytest.approx(1)
    assert scored["usage"]["prompt_tokens"] == 6
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = {"query": "hello", "documents": ["paris", {"text": "hello"}], "top_n": 1}
        (best,) = post(embedder, path, body)["results"]
        assert best == {"index": 1, "relevance_score": pytest.approx(1), "document": {"text": "hello"}}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {"input": []}, "input is empty"),
        ("/v1/embeddings", {}, "input or messages"),
        ("/v1/embeddings", {"input": [[]]}, "empty list"),
        ("/v1/embeddings", {"input": [1, 10**9]}, "vocabulary"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "csv"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 999}, "dimensions=999"),
        ("/v1/embeddings", {"input": "a " * 200}, "at most 96"),
        ("/v1/embeddings", {"input": ["a", 1]}, "mixes"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, "other"),
        ("/pooling", {"input": "a", "task": "classify"}, "no task"),
        ("/classify", {"input": "a"}, "no task"),
        ("/score", {"text_1": "a"}, "missing"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "pair up"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [{"title": "x"}]}, "documents.0"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, ""),
        ("/v1/completions", {"prompt": "a"}, "does not generate"),
    ],
)
def test_what_is_refused(path: str, body: Any, says: str, embedder: Running) -> None:
    response = httpx.post(f"{embedder.url}{path}", json=body, timeout=20)
    assert 400 <= response.status_code < 500, response.text
    assert says in response.json()["error"]["message"]


def test_a_classifier(folders: Any) -> None:
    made = folders("labels")
    with server(made.folder) as running:
        (one,) = post(running, "/classify", {"input": "hello world"})["data"]
        assert one["num_classes"] == 3
        assert one["label"] == ("bad", "fair", "good")[int(np.argmax(one["probs"]))]
        assert sum(one["probs"]) == pytest.approx(1, abs=1e-6)
        raw = post(running, "/classify", {"input": "hello world", "use_activation": False})["data"][0][
            "probs"
        ]
        np.testing.assert_allclose(raw, made.rows([1, 32, 33, 2])[0], atol=2e-5)
        assert "3 labels" in post(running, "/score", {"text_1": "a", "text_2": "b"}, 400)["error"]["message"]


def test_a_cross_encoder(folders: Any) -> None:
    made = folders("score")
    with server(made.folder) as running:
        body = {"query": "hello", "documents": ["paris", "a b c", "world"], "return_documents": False}
        found = post(running, "/rerank", body)
        scores = [one["relevance_score"] for one in found["results"]]
        assert scores == sorted(scores, reverse=True)
        best = found["results"][0]
        ids = [1, 32, 2, *([34], [6, 7, 8], [33])[best["index"]], 2]
        expected = made.rows(ids, [0] * 3 + [1] * (len(ids) - 3))[0, 0]
        assert best == {
            "index": best["index"],
            "relevance_score": pytest.approx(1 / (1 + np.exp(-expected)), abs=2e-5),
        }
        shorter = post(running, "/rerank", {**body, "documents": ["a b c d"], "max_tokens_per_doc": 2})
        pair = post(running, "/v1/score", {"queries": "hello", "documents": ["a b"]})
        assert shorter["results"][0]["relevance_score"] == pair["data"][0]["score"]


def test_a_generative_server_says_why_not(folders: Any) -> None:
    with server(folders("decoder").folder) as running:
        for path, body in (
            ("/v1/embeddings", {"input": "a"}),
            ("/classify", {"input": "a"}),
            ("/score", {"text_1": "a", "text_2": "b"}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
        ):
            assert "--runner pooling" in post(running, path, body, 400)["error"]["message"]
        assert (
            post(running, "/v1/completions", {"prompt": "a", "max_tokens": 2})["usage"]["completion_tokens"]
            == 2
        )


def test_the_ollama_client(embedder: Running, folders: Any) -> None:
    texts = ["hello world", "paris"]
    expected = vectors(folders("embed").folder, texts)
    with ollama.Client(embedder.url) as client:
        name = client.list().models[0].model or ""
        found = client.embed(name, texts)
        np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)
        assert found.prompt_eval_count == 4 + 3
        assert len(client.embed(name, texts, dimensions=8).embeddings[0]) == 8
        np.testing.assert_allclose(client.embeddings(name, texts[0]).embedding, expected[0], atol=1e-6)
        shown = client.show(name)
        assert shown.capabilities == ["embedding"]
        assert (shown.modelinfo or {})["bert.embedding_length"] == len(expected[0])
        with pytest.raises(ollama.ResponseError, match="embeddings"):
            client.generate(name, "Hi")
        with pytest.raises(ollama.ResponseError):
            client.embed(name, "a " * 5000, truncate=False)


def test_ollamas_embeddings_of_a_model_that_generates(folders: Any) -> None:
    with server(folders("decoder").folder) as running, ollama.Client(running.url) as client:
        name = client.list().models[0].model or ""
        with pytest.raises(ollama.ResponseError, match="makes no embeddings"):
            client.embed(name, "Hi")
        assert "completion" in (client.show(name).capabilities or ())


def test_coheres_shape(folders: Any, tmp_path: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("embed").folder, folder)
    sentence_transformer(folder, "cls_token")
    prompts = {"prompts": {"query": "paris ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    [plain, asked] = vectors(folder, ["hello", "paris hello"])
    with server(folder) as running:
        model = httpx.get(f"{running.url}/v1/models").json()["data"][0]["id"]
        body = {"model": model, "texts": ["hello"], "input_type": "search_query", "truncate": "END"}
        reply = post(
            running, "/v2/embed", {**body, "embedding_types": ["float", "base64", "ubinary", "binary"]}
        )
        found = reply["embeddings"]
        np.testing.assert_allclose(found["float"], [asked], atol=1e-6)
        np.testing.assert_array_equal(
            np.frombuffer(base64.b64decode(found["base64"][0]), "<f4"), np.float32(found["float"][0])
        )
        bits = np.packbits(np.array(asked) > 0)
        assert found["ubinary"] == [bits.tolist()]
        assert found["binary"] == [(bits.astype(int) - 128).tolist()]
        assert (reply["texts"], reply["response_type"]) == (["hello"], "embeddings_by_type")
        assert reply["meta"]["billed_units"]["input_tokens"] == 4
        parts = [{"content": [{"type": "text", "text": "hello"}]}]
        reply = post(running, "/v2/embed", {"model": model, "inputs": parts, "output_dimension": 8})
        assert list(reply["embeddings"]) == ["float"]
        assert len(reply["embeddings"]["float"][0]) == 8
        reply = post(
            running, "/v2/embed", {**body, "input_type": "search_document", "output_dimension": None}
        )
        np.testing.assert_allclose(reply["embeddings"]["float"], [plain], atol=1e-6)
        for wrong in (
            {"embedding_types": ["int8"]},
            {"input_type": "image"},
            {"truncate": "START"},
            {"texts": []},
            {"images": ["x"]},
            {"texts": ["a " * 5000], "truncate": "NONE"},
        ):
            post(running, "/v2/embed", {**body, **wrong}, 400)
