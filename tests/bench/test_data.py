"""Data sets: random lengths, traces in both formats, prompt files, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.bench.data import Wanted, samples
from octavo.errors import ConfigError

TRACES = Path(__file__).parents[2] / "../shared/data/traces"


def test_random_is_seeded_and_within_the_vocabulary() -> None:
    wanted = Wanted(count=20, input_len=100, output_len=50, range_ratio=0.5, prefix_len=7, seed=3, vocab=40)
    found = samples(wanted)
    assert found == samples(wanted)
    assert len({sample.prompt[:7] for sample in found}) == 1
    assert len({sample.prompt for sample in found}) == 20
    assert all(57 <= len(sample.prompt) <= 157 and 25 <= sample.output_len <= 75 for sample in found)
    assert len({len(sample.prompt) for sample in found}) > 3
    assert {i for sample in found for i in sample.prompt} <= set(range(40))


def test_random_lengths_are_exact_without_a_ratio() -> None:
    found = samples(Wanted(count=3, input_len=5, output_len=6))
    assert [(len(s.prompt), s.output_len) for s in found] == [(5, 6)] * 3
    assert min(i for s in found for i in s.prompt) >= 3


def test_mooncake_shares_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 600, "output_length": 9, "hash_ids": [0, 1]},
        {"timestamp": 3500, "input_length": 1100, "output_length": 4, "hash_ids": [0, 2, 3]},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = samples(Wanted("trace", str(path)))
    assert (first.arrival_s, second.arrival_s) == (0.0, 2.5)
    assert (len(first.prompt), len(second.prompt)) == (600, 1100)
    assert first.prompt[:512] == second.prompt[:512]
    assert first.prompt[512:600] != second.prompt[512:600]
    assert (first.output_len, second.output_len) == (9, 4)


@pytest.mark.parametrize(
    "text",
    [
        "arrival_s,prompt_tokens,output_tokens\n1.0,10,2\n4.5,20,3\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,10,2\n2023-11-16 18:15:50.1805900,20,3\n",
    ],
)
def test_azure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    found = samples(Wanted("trace", str(path), input_len=15))
    assert [(s.arrival_s, len(s.prompt), s.output_len) for s in found] == [(0.0, 10, 2), (3.5, 15, 3)]


@pytest.mark.skipif(not TRACES.is_dir(), reason="../shared is not here")
@pytest.mark.parametrize("name", ["azure_2023_conv.csv", "mooncake_conversation.jsonl"])
def test_real_traces(name: str) -> None:
    found = samples(Wanted("trace", str(TRACES / name), count=30))
    assert len(found) == 30
    assert all(s.prompt and s.output_len and s.arrival_s is not None for s in found)


@pytest.mark.parametrize(
    ("name", "text", "lengths"),
    [
        ("a.jsonl", '{"prompt": "one", "output_len": 5}\n\n{"prompt": "two"}\n', [5, 128]),
        ("a.csv", "prompt,output_tokens\none,5\ntwo,\n", [5, 128]),
        ("a.txt", "one\n\ntwo\n", [128, 128]),
        (
            "a.json",
            json.dumps(
                [
                    {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "x"}]},
                    {"conversations": [{"from": "human", "value": "alone"}]},
                    {"conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "x"}]},
                ]
            ),
            [128, 128],
        ),
    ],
)
def test_files(tmp_path: Path, name: str, text: str, lengths: list[int]) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = samples(Wanted("file", str(path)))
    assert [s.prompt for s in found] == ["one", "two"]
    assert [s.output_len for s in found] == lengths
    assert [s.output_len for s in samples(Wanted("file", str(path), output_len=3))] == [3, 3]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("file", None, "cannot read"),
        ("file", "not json\n", "cannot be read as a file"),
        ("trace", '{"a": 1}\n', "cannot be read as a trace"),
        ("file", "", "no request"),
        ("sonnets", "x", "no 'sonnets'"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        samples(Wanted(name, str(path)))


def test_other_mistakes() -> None:
    with pytest.raises(ConfigError, match="needs --dataset-path"):
        samples(Wanted("trace"))
    with pytest.raises(ConfigError, match="range-ratio"):
        samples(Wanted(range_ratio=1.0))
