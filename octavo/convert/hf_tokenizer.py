"""The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.convert.safetensors_file import write_json
from octavo.log import logger
from octavo.pipeline.gguf_tokenizer import gguf_tokenizer
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import HuggingFaceCodec

log = logger(__name__)


def write_tokenizer(folder: Path, metadata: Mapping[str, Any], where: str) -> None:
    """Write both files, and nothing but a warning where the file holds no tokenizer."""
    tokenizer = gguf_tokenizer(metadata, where)
    if tokenizer is None or not isinstance(tokenizer.codec, HuggingFaceCodec):
        log.warning("%s holds no tokenizer: the folder will have none.", where)
        return
    definition = tokenizer.codec.definition()
    begins, ends = bool(tokenizer.config.get("add_bos_token")), bool(tokenizer.config.get("add_eos_token"))
    if begins or ends:
        definition["post_processor"] = _around(tokenizer, definition.get("post_processor"), begins, ends)
    write_json(folder / "tokenizer.json", definition)
    config = {key: value for key, value in tokenizer.config.items() if key != "chat_template"}
    templates: dict[str, str] = tokenizer.config.get("chat_template") or {}
    if len(templates) == 1 and "default" in templates:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    config.update(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False)
    write_json(folder / "tokenizer_config.json", config)


def _around(tokenizer: Tokenizer, before: Any, begins: bool, ends: bool) -> Any:
    """The step that puts BOS before a text and EOS behind it; other programs know it from here only."""
    named = [
        (tokenizer.special_tokens_map.get("bos_token"), tokenizer.bos_id, begins, 0),
        (tokenizer.special_tokens_map.get("eos_token"), tokenizer.eos_id, ends, 1),
    ]
    used = [(text, index, at) for text, index, wanted, at in named if wanted and text and index is not None]
    if not used:
        return before

    def one(kind: str, number: int) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = [{"Sequence": {"id": kind, "type_id": number}}]
        for text, _, at in used:
            said.insert(0 if at == 0 else len(said), {"SpecialToken": {"id": text, "type_id": number}})
        return said

    step = {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i, _ in used},
    }
    return {"type": "Sequence", "processors": [before, step]} if before else step
