"""The shared suites: what is accepted gives only valid answers, what is not supported is refused by name."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from octavo.errors import BadRequest
from octavo.pipeline.grammar import Grammars
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.structured import StructuredOutputsParams as Form

VALIDATORS = {
    "draft7": jsonschema.Draft7Validator,
    "draft2020-12": jsonschema.Draft202012Validator,
}
CLOSING = b'"}],:0123456789tfn'


class Walker:
    """Random answers, and whether given ones fit, over a small vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.grammars = Grammars(tokenizer, tokenizer.vocab_size)
        self.size = tokenizer.vocab_size
        self.bytes = [tokenizer.token_bytes(i) or b"" for i in range(self.size)]
        special = tokenizer.special_ids
        self.single = {b[0]: i for i, b in enumerate(self.bytes) if len(b) == 1 and i not in special}
        self.closing = np.array([b[:1] in {bytes([c]) for c in CLOSING} for b in self.bytes] + [False])

    def answer(self, grammar: Any, seed: int, steps: int) -> bytes | None:
        """One answer, None when it did not end in time."""
        rng = random.Random(seed)
        matcher = grammar.matcher.deep_copy()
        text = b""
        for _ in range(steps):
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            mask = mask[: self.size + 1].astype(bool)
            assert not matcher.is_error(), matcher.get_error()
            if mask[self.size] and (mask.sum() == 1 or rng.random() < 0.4):
                return text
            mask[self.size] = False
            near = np.flatnonzero(mask & self.closing)
            ids = near if len(near) and rng.random() < 0.7 else np.flatnonzero(mask)
            token = int(ids[rng.randrange(len(ids))])
            assert matcher.consume_token(token)
            text += self.bytes[token]
            if matcher.is_stopped():
                assert matcher.is_accepting()
                return text
        return None

    def fits(self, grammar: Any, text: str) -> bool:
        """Whether a whole text is an answer."""
        matcher = grammar.matcher.deep_copy()
        ids = [self.single[byte] for byte in text.encode()]
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.fixture(scope="module")
def walker(byte_tokenizer: Tokenizer) -> Walker:
    return Walker(byte_tokenizer)


def lines(shared: Path, name: str) -> list[dict[str, Any]]:
    text = (shared / "data/structured_output" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def check(walker: Walker, draft: str, schema: Any, tests: list[dict[str, Any]], walks: int) -> str:
    """Try one schema: the word of its refusal, or "" after everything it lets through was valid."""
    try:
        grammar = walker.grammars.of(Form(json=schema))
    except BadRequest as error:
        return str(error)
    kind = VALIDATORS[draft]
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    walks = 0 if "\\\\p" in json.dumps(schema) else walks  # properties of Unicode: Python's re has none
    for seed in range(walks):
        text = walker.answer(grammar, seed, 80)
        if text is not None:
            errors = [error for error in validator.iter_errors(json.loads(text)) if not _is_multiple(error)]
            assert not errors, (schema, text)
    for test in tests:
        text = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))
        if not test["valid"]:
            assert not walker.fits(grammar, text), (schema, text)
    return ""


def _is_multiple(error: jsonschema.ValidationError) -> bool:
    """Whether the validator has only lost itself in binary fractions."""
    if error.validator != "multipleOf":
        return False
    return Decimal(str(error.instance)) % Decimal(str(error.validator_value)) == 0


@pytest.mark.parametrize("draft", VALIDATORS)
def test_json_schema_test_suite(walker: Walker, shared: Path, draft: str) -> None:
    refused = []
    groups = lines(shared, f"json_schema_test_suite/{draft}.jsonl")
    for group in groups:
        if group["schema"] is not False:
            refused.append(check(walker, draft, group["schema"], group["tests"], 4))
    assert sum(not reason for reason in refused) > len(groups) * 0.45
    for reason in filter(None, refused):
        assert reason.startswith("It cannot be compiled: "), reason


def test_schemas_of_the_field(walker: Walker, shared: Path) -> None:
    """Function calls, Kubernetes, SchemaStore: most compile, and none lets an invalid instance through."""
    refused = []
    samples = lines(shared, "maskbench_sample.jsonl")
    for number, sample in enumerate(samples):
        draft = "draft2020-12" if "2020-12" in str(sample["schema"].get("$schema")) else "draft7"
        refused.append(check(walker, draft, sample["schema"], sample["tests"], 1 if number % 3 == 0 else 0))
    assert sum(not reason for reason in refused) > len(samples) * 0.75


def test_strings_that_grammars_accept_and_reject(walker: Walker, shared: Path) -> None:
    unsupported = 0
    for case in lines(shared, "grammar_cases.jsonl"):
        forms: dict[str, dict[str, Any]] = {
            "json_schema": {"json": case["spec"]},
            "gbnf": {"grammar": case["spec"]},
            "regex": {"regex": case["spec"]},
            "json": {"json": True},
            "format": {"json": {"type": "string", "format": case["spec"]}},
        }
        try:
            grammar = walker.grammars.of(Form(**forms[case["kind"]]))
        except BadRequest:
            unsupported += 1
            continue
        quote = '"' if case["kind"] == "format" else ""
        fitting = [walker.fits(grammar, f"{quote}{text}{quote}") for text in case["accept"]]
        # Of some formats rare spellings are left out: quoted names in addresses, IPv4 inside of IPv6.
        assert any(fitting) if quote else all(fitting), (case["name"], case["accept"], fitting)
        for text in case["reject"]:
            assert not walker.fits(grammar, f"{quote}{text}{quote}"), (case["name"], text)
    assert unsupported <= 3


def test_grammars_of_llama_cpp(walker: Walker, shared: Path) -> None:
    files = sorted((shared / "data/structured_output/gbnf").glob("*.gbnf"))
    assert files
    for file in files:
        grammar = walker.grammars.of(Form(grammar=file.read_text(encoding="utf-8")))
        walker.answer(grammar, 0, 100)


def test_unions_told_apart_by_a_property(walker: Walker) -> None:
    """What pydantic writes for a discriminated union."""
    kinds = {
        name: {"properties": {"kind": {"const": name}, "n": {"type": kind}}, "required": ["kind", "n"]}
        for name, kind in (("cat", "integer"), ("dog", "boolean"))
    }
    for kind in kinds.values():
        kind.update(type="object", additionalProperties=False)
    schema = {"$defs": kinds, "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]}
    grammar = walker.grammars.of(Form(json=schema))
    assert walker.fits(grammar, '{"kind":"cat","n":3}')
    assert walker.fits(grammar, '{"kind":"dog","n":true}')
    assert not walker.fits(grammar, '{"kind":"dog","n":3}')
    with pytest.raises(BadRequest, match="oneOf"):
        walker.grammars.of(Form(json={"oneOf": [{"type": "number"}, {"type": "integer"}]}))


def test_options(walker: Walker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    plain = walker.grammars.of(Form(json=schema))
    tight = walker.grammars.of(Form(json=schema, disable_any_whitespace=True))
    closed = walker.grammars.of(Form(json=schema, disable_additional_properties=True))
    tabbed = walker.grammars.of(Form(json=schema, whitespace_pattern=r"\t"))
    assert walker.fits(plain, '{\n  "a" : 1,\n  "b": 2\n}')
    assert not walker.fits(plain, "{" + " " * 99 + "}"), "white space without end"
    assert walker.fits(tight, '{"a":1}')
    assert not walker.fits(tight, '{"a": 1}')
    assert not walker.fits(closed, '{"a":1,"b":2}')
    assert walker.fits(tabbed, '{\t"a":1}')
    assert not walker.fits(tabbed, '{ "a":1}')
