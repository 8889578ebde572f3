"""octavo bench quality: a known perplexity, windows that share nothing, and what is wrong with a text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from octavo.bench import quality
from octavo.bench.cli import main
from octavo.bench.session import Session
from octavo.errors import BadRequest, ConfigError

DATA = Path(__file__).parents[2] / "../shared/data"
TEXT = "The sky is blue because air scatters blue light more than red light. " * 21


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared is not here")
def test_stories260k(tmp_path: Path) -> None:
    """transformers says 4.7741 for the first 30 windows (expected.json beside the weights)."""
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    out = tmp_path / "q.json"
    words = ["quality", str(DATA / "weights/stories260k"), "--dtype", "float32", "--max-windows", "30"]
    words += ["--text", str(DATA / "corpus/tinystories_a.txt"), "--output-json", str(out)]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert (result["windows"], result["tokens"]) == (30, 7650)
    assert result["perplexity"] == pytest.approx(4.7741, abs=1e-4)


def test_windows_are_scored_alone_and_all_of_them(session: Session) -> None:
    launched = session.launched
    whole = quality.measure(launched, TEXT, quality.Options(window=32))
    tokens = len(launched.preparer.encode_text(TEXT, False))
    assert tokens % 32 > 1
    assert whole["windows"] == -(-tokens // 32)
    assert whole["tokens"] == tokens - whole["windows"]
    assert whole["perplexity"] == pytest.approx(math.exp(whole["nats"] / whole["tokens"]))
    assert whole["bits_per_byte"] == pytest.approx(whole["nats"] / math.log(2) / len(TEXT))
    first = quality.measure(launched, TEXT, quality.Options(window=32, max_windows=1))
    assert first["tokens"] == 31
    assert first["nats"] < whole["nats"]
    assert "Perplexity" in quality.text({**whole, "window": 32})


def test_what_cannot_be_measured(session: Session, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="context of 256"):
        quality.measure(session.launched, TEXT, quality.Options(window=300))
    with pytest.raises(ConfigError, match="at least 2"):
        quality.measure(session.launched, "", quality.Options())
    with pytest.raises(ConfigError, match="needs a text"):
        main(["quality"])
    with pytest.raises(ConfigError, match="cannot read"):
        main(["quality", "--text", str(tmp_path / "none")])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        main(["quality", "--text", str(tmp_path / "bytes")])
