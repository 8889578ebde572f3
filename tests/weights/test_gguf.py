"""The GGUF reader: what the gguf package and Octavo write, and what somebody wrote to break it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.config.model_path import gguf_in
from octavo.convert.gguf_file import Metadata, Tensor, Value, write_gguf
from octavo.errors import CheckpointError, OctavoError, UnsupportedModel
from octavo.weights.ggml import NAMED
from octavo.weights.gguf import GgufFile, is_gguf, open_gguf

VALUES: Metadata = {
    "a.u8": Value("u8", 255),
    "a.i64": Value("i64", -(2**60)),
    "a.f32": Value("f32", 0.5),
    "a.bool": Value("bool", True),
    "a.text": Value("string", "wörd"),
    "a.texts": Value("string[]", ["", "x", "日本"]),
    "a.numbers": Value("f32[]", [1.0, 2.5]),
    "a.flags": Value("bool[]", [True, False]),
}
DATA = np.arange(96, dtype=np.float32).reshape(3, 32)


def tensor(name: str, values: np.ndarray, kind: str = "F32") -> Tensor:
    return Tensor(name, values.shape, NAMED[kind], lambda: iter([values]))


def written(path: Path, metadata: Metadata = VALUES, *tensors: Tensor) -> Path:
    write_gguf(path, metadata, list(tensors) or [tensor("t", DATA), tensor("u", DATA[0] + 1)])
    return path


def plain(metadata: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in metadata.items()}


def test_what_octavo_writes(tmp_path: Path) -> None:
    file = GgufFile(written(tmp_path / "x.gguf"))
    assert plain(file.metadata) == {key: value.value for key, value in VALUES.items()}
    assert np.array_equal(file.get("t").dequantize(), DATA)
    assert np.array_equal(file.get("u").dequantize(), DATA[0] + 1)
    assert file.nbytes == DATA.nbytes + DATA[0].nbytes
    file.release("t")
    assert np.array_equal(file.get("t").dequantize(), DATA)


def test_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("n", 7)
    writer.add_array("words", ["a", "b"])
    blocks = np.arange(68, dtype=np.uint8).reshape(2, 34)
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("f", DATA.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.metadata == {"general.architecture": "llama", "n": 7, "words": ["a", "b"]}
    assert np.array_equal(file.raw("q"), blocks)
    assert file.entries["q"].shape == (2, 32)
    assert np.array_equal(file.get("f").dequantize(), DATA)
    assert is_gguf(path)
    assert not is_gguf(tmp_path / "absent")


def test_version_2_is_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    path.write_bytes(raw)
    assert np.array_equal(GgufFile(path).get("t").dequantize(), DATA)


@pytest.mark.parametrize("suffix", [".gguf", ""])
def test_shards(suffix: str, tmp_path: Path) -> None:
    count = {"split.count": Value("u16", 2)}
    first = written(tmp_path / f"m-00001-of-00002{suffix}", {**VALUES, **count}, tensor("t", DATA))
    second = written(tmp_path / f"m-00002-of-00002{suffix}", count, tensor("u", DATA + 1))
    assert gguf_in(tmp_path) == first
    for path in (first, second):
        checkpoint = open_gguf(path)
        assert checkpoint.metadata["a.u8"] == 255
        assert checkpoint.names() == ("t", "u")
        assert checkpoint.file_of("u") == second
        assert np.array_equal(checkpoint.get("u").dequantize(), DATA + 1)
    second.unlink()
    refused(first, rf"lacks m-00002-of-00002{suffix}: 1 of 2")
    written(second, count, tensor("t", DATA))
    refused(first, "in both")
    for stated, said in ((Value("u16", 2), "2"), (Value("u16[]", [1, 1]), r"array\(\[1, 1\].*")):
        written(tmp_path / "one.gguf", {"split.count": stated})
        refused(tmp_path / "one.gguf", f"one of {said} shards, found 1")


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(OctavoError, match=pattern):
        open_gguf(path)


HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def row(name: bytes = b"t", sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def whole(*, pairs: list[bytes] | None = None, rows: list[bytes] | None = None, data: int = 256) -> bytes:
    pairs, rows = pairs or [], rows or []
    head = HEAD + struct.pack("<QQ", len(rows), len(pairs)) + b"".join(pairs) + b"".join(rows)
    return head + bytes(-len(head) % 32) + bytes(data)


HOSTILE = {
    "no magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
    "only the magic": (b"GGUF", "truncated"),
    "tensors without end": (HEAD + struct.pack("<QQ", 2**60, 0), "2\\^?.* tensors|claims"),
    "pairs without end": (HEAD + struct.pack("<QQ", 0, 2**63), "claims"),
    "more pairs than bytes": (HEAD + struct.pack("<QQ", 0, 60000), "truncated"),
    "key of 2^60 bytes": (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60), "claims a text"),
    "text of 2^40 bytes": (whole(pairs=[pair(b"k", 8, struct.pack("<Q", 2**40))]), "claims a text"),
    "text past the end": (whole(pairs=[pair(b"k", 8, struct.pack("<Q", 5000))]), "truncated"),
    "unknown value": (whole(pairs=[pair(b"k", 77, b"")]), "unknown type 77"),
    "list without end": (whole(pairs=[pair(b"k", 9, struct.pack("<IQ", 4, 2**62))]), "claims"),
    "list past the end": (whole(pairs=[pair(b"k", 9, struct.pack("<IQ", 4, 2**20))]), "truncated"),
    "texts past the end": (whole(pairs=[pair(b"k", 9, struct.pack("<IQ", 8, 2**20))]), "truncated|claims"),
    "nested list": (whole(pairs=[pair(b"k", 9, struct.pack("<IQ", 9, 1) * 1000)]), "list of the type 9"),
    "key twice": (whole(pairs=[pair(b"k", 0, b"1"), pair(b"k", 0, b"1")]), "second time"),
    "alignment 0": (whole(pairs=[pair(b"general.alignment", 4, bytes(4))]), "power of two"),
    "alignment text": (whole(pairs=[pair(b"general.alignment", 8, text(b"x"))]), "power of two"),
    "tensor twice": (whole(rows=[row(), row(offset=128)]), "second time"),
    "overlap": (whole(rows=[row(b"a"), row(b"b", offset=64)]), "overlap"),
    "past the end": (whole(rows=[row(offset=224)]), "truncated: for tensor 't'"),
    "offset of 2^64 - 1": (whole(rows=[row(offset=2**64 - 1)]), "truncated"),
    "no axes": (whole(rows=[row(sizes=())]), "0 axes"),
    "2^31 axes": (whole(rows=[text(b"t") + struct.pack("<I", 2**31)]), "axes"),
    "size 0": (whole(rows=[row(sizes=(0,))]), "impossible shape"),
    "sizes that overflow": (whole(rows=[row(sizes=(2**33, 2**33))]), "impossible shape"),
    "unknown type": (whole(rows=[row(kind=5)]), "type 5"),
    "part of a block": (whole(rows=[row(sizes=(40,), kind=2)]), "whole Q4_0 blocks"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    raw, pattern = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        refused(path, pattern)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "block", "scale"), [(2, 18, 0), (8, 34, 0), (12, 144, 2), (14, 210, 208)])
def test_scales_that_are_no_numbers_are_named(kind: int, block: int, scale: int, tmp_path: Path) -> None:
    """Q4_0, Q8_0, the minimum of Q4_K, Q6_K; also in a stack of experts."""
    path, cols = tmp_path / "x.gguf", 256
    raw = bytearray(block * (cols // 32 if kind in (2, 8) else 1))
    for shape, read in (((cols, 1), GgufFile.get), ((cols, 1, 1), lambda file, name: file.expert(name, 0))):
        for number, said in ((b"\xff\x7f", "nan"), (b"\0\x7c", "inf")):
            raw[scale : scale + 2] = number
            path.write_bytes(whole(rows=[row(b"t", shape, kind)], data=0) + raw)
            with pytest.raises(
                CheckpointError, match=rf"tensor 't' has the (scale|minimum) -?{said} in row 0"
            ):
                read(GgufFile(path), "t")


def test_what_is_not_decoded_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for stored, said in ((row(sizes=(128,), kind=41), "Q1_0"), (row(sizes=(32,), kind=2), "of 1 axes")):
        path.write_bytes(whole(rows=[stored]))
        with pytest.raises(UnsupportedModel, match=rf"x.gguf: tensor 't': .*{said}"):
            GgufFile(path).get("t")


def test_every_truncation(tmp_path: Path) -> None:
    raw = written(tmp_path / "x.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(1, len(raw) - DATA[0].nbytes % 32, 7):
        path.write_bytes(raw[:length])
        refused(path, "truncated|lacks")
