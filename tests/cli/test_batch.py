"""octavo run-batch: the bundled model over a file, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import FAILED, OK, USAGE, run


def line(name: str, url: str = "/v1/chat/completions", **body: Any) -> str:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})


def test_a_file_is_answered_in_its_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [line(str(i), max_tokens=9 - i) for i in range(8)]
    lines += [
        "{",
        "",
        line("bad", temperature=9),
        line("text", "/v1/completions", prompt="A"),
        line("no", "/x"),
    ]
    source.write_text("\n".join(lines))
    words = ["run-batch", "-i", str(source), "-o", str(target), "--concurrency", "4", "--quiet"]
    assert run([*words, "--max-model-len", "256"]) == OK
    told = [json.loads(text) for text in target.read_text().splitlines()]
    assert [t["custom_id"] for t in told] == [*map(str, range(8)), "line-9", "bad", "text", "line-13"]
    for i, answer in enumerate(told[:8]):
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["usage"]["completion_tokens"] <= 9 - i
    assert (told[8]["response"], told[8]["error"]["code"]) == (None, "invalid_json_line")
    assert told[9]["response"]["status_code"] == 400
    assert told[10]["response"]["body"]["object"] == "text_completion"
    assert told[11]["error"]["code"] == "invalid_url"
    assert "12 lines: 9 answered, 3 not." in capfd.readouterr().err


def test_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run-batch", "-o", "x"]) == USAGE
    assert "-i FILE" in capsys.readouterr().err
    assert run(["run-batch", "-i", "https://example.com/a", "-o", "x"]) == FAILED
    assert "address" in capsys.readouterr().err
    assert run(["run-batch", "-i", str(tmp_path / "none"), "-o", "x"]) == FAILED
    assert run(["run-batch", "--help"]) == OK
    page = capsys.readouterr().out
    assert "--input-file" in page
    assert "-i" in page
