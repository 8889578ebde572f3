"""A model folder is data: damaged, hostile or odd, it is read or refused in one sentence, and never run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from octavo import LLM, SamplingParams
from octavo.errors import OctavoError
from octavo.launch import POCKET


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(POCKET, tmp_path / "model"))


def use(folder: Path, **keywords: Any) -> LLM:
    """Load it and ask it something in both ways. Anything but an OctavoError is a fault."""
    llm = LLM(str(folder), kv_cache_memory="4MB", max_num_seqs=2, max_model_len=64, **keywords)
    llm.generate("Why é 天", SamplingParams(max_tokens=3), use_tqdm=False)
    llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=3), use_tqdm=False)
    return llm


DEEP = b"[" * 100_000
DAMAGED: list[tuple[str, bytes]] = [
    ("config.json", DEEP),
    ("config.json", b"\xff\xfe"),
    ("config.json", b"[]"),
    ("tokenizer.json", DEEP),
    ("tokenizer.json", b'{"model": null}'),
    ("tokenizer.json", b'"' + b"A" * 5000 + b'"'),
    ("tokenizer_config.json", DEEP),
    ("tokenizer_config.json", b"\x80"),
    ("added_tokens.json", b'{"<x>": "y"}'),
    ("added_tokens.json", b'{"<x>": NaN}'),
    ("added_tokens.json", b'{"<x>": [1]}'),
    ("special_tokens_map.json", b"3"),
    ("generation_config.json", DEEP),
    ("generation_config.json", b'{"temperature": "hot"}'),
    ("chat_template.jinja", b"\xa7\x00"),
    ("chat_template.jinja", b"{% if %}"),
    ("chat_template.jinja", b"{{ ''.__class__.__mro__ }}"),
    ("chat_template.jinja", b"{% for i in range(10**9) %}x{% endfor %}"),
    ("chat_template.jinja", b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    ("chat_template.jinja", b"{% import 'os' as os %}"),
    ("model.safetensors", b""),
    ("model.safetensors", b"\xff" * 64),
]


@pytest.mark.parametrize(
    ("name", "content"), DAMAGED, ids=lambda v: v[:24].decode("latin1") if isinstance(v, bytes) else v
)
def test_a_damaged_file_is_one_sentence(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(OctavoError) as caught:
        use(folder)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value).strip()


ODD: list[tuple[str, dict[str, Any]]] = [
    ("tokenizer_config.json", {"extra_special_tokens": 5, "additional_special_tokens": {"a": 1}}),
    ("tokenizer_config.json", {"added_tokens_decoder": 7, "bos_token": "\ud800"}),
    (
        "tokenizer_config.json",
        {"tokenizer_class": "../../evil", "auto_map": {"AutoTokenizer": ["evil.T", None]}},
    ),
    ("generation_config.json", {"eos_token_id": [10**9, 3], "top_k": 2**31 - 1}),
    ("generation_config.json", {"eos_token_id": {"a": 1}}),
    ("config.json", {"_attn_implementation": "evil", "auto_map": {"AutoModelForCausalLM": "evil.M"}}),
]


@pytest.mark.parametrize(("name", "fields"), ODD, ids=lambda v: str(v)[:30])
def test_what_does_not_matter_is_passed_over_and_nothing_is_imported(
    folder: Path, name: str, fields: dict[str, Any]
) -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **fields}))
    for module in ("evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{module}.py").write_text("raise SystemExit('a file of the model was run')")
    use(folder, trust_remote_code=True)


def test_an_index_cannot_reach_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OctavoError, match="not inside its folder"):
        use(folder)
