from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError
from octavo.weights.safetensors import SafetensorsFile

sys.path.insert(0, str(Path(__file__).parent))
from writers import encode, pack, save

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6, dtype=np.float16),
    "c": np.array([0x3F80, 0xC000], dtype=np.uint16),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "ids": np.arange(3, dtype=np.int64),
}


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    return str(caught.value)


def test_tensors_come_back_as_read_only_views(tmp_path: Path) -> None:
    file = SafetensorsFile(save(tmp_path / "m.safetensors", TENSORS))
    assert set(file.entries) == set(TENSORS)
    for name, array in TENSORS.items():
        got = file.get(name)
        assert np.array_equal(got.data, array)
        assert not got.data.flags.writeable
        file.release(name)
        assert np.array_equal(file.get(name).data, array)
    assert file.get("c").dtype == "bfloat16"
    assert file.get("c").dequantize().tolist() == [1.0, -2.0]
    assert file.nbytes == sum(array.nbytes for array in TENSORS.values())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    numpy_io = pytest.importorskip("safetensors.numpy")
    numpy_io.save_file({"x": TENSORS["a.weight"], "y": TENSORS["b"]}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert np.array_equal(file.get("x").data, TENSORS["a.weight"])
    assert np.array_equal(file.get("y").data, TENSORS["b"])


def test_unaligned_data_is_still_right(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    raw = json.dumps(header).encode()
    data = pack(raw + b" " * (-len(raw) % 8), b"\0" + np.array([1.5, -2.0], dtype="<f4").tobytes())
    (tmp_path / "m.safetensors").write_bytes(data)
    got = SafetensorsFile(tmp_path / "m.safetensors").get("x")
    assert got.data.tolist() == [1.5, -2.0]
    assert got.data.flags.aligned


def test_a_truncated_file_names_file_tensor_and_bytes(tmp_path: Path) -> None:
    data = encode(TENSORS)
    said = refusal(tmp_path / "m.safetensors", data[:-30])
    assert "m.safetensors" in said
    assert "'b'" in said
    assert str(len(data) - 30) in said
    assert "truncated" in refusal(tmp_path / "m.safetensors", data[:40])
    assert "found 5" in refusal(tmp_path / "m.safetensors", data[:5])
    assert "empty" in refusal(tmp_path / "m.safetensors", b"")


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"x": entry(offsets=[8, 0])}, "begin <= end"),
        ({"x": entry(offsets=[-8, 0])}, "non-negative"),
        ({"x": entry(offsets=[0, 8, 16])}, "begin <= end"),
        ({"x": entry(offsets=[0.0, 8.0])}, "non-negative"),
        ({"x": entry(shape=[True, 2])}, "non-negative"),
        ({"x": entry(shape=[3])}, "12 bytes"),
        ({"x": entry(shape=[2**62, 4], offsets=[0, 0])}, "impossible"),
        ({"x": entry(shape=[0, 2**62], offsets=[0, 0])}, "impossible"),
        ({"x": entry(shape=[1] * 40, offsets=[0, 4])}, "impossible"),
        ({"x": entry(offsets=[2**63, 2**63 + 8])}, "truncated"),
        ({"x": entry(dtype="F33")}, "not known"),
        ({"x": entry(dtype=["F32"])}, "not known"),
        ({"x": 3}, "not by a JSON object"),
        ({"x": {}}, "not known"),
        ({"x": entry(), "y": entry(offsets=[4, 12])}, "overlap"),
        ([1], "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"x": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"x": {}, "x": {}}', "twice"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: object, words: str) -> None:
    assert words in refusal(tmp_path / "m.safetensors", pack(header, bytes(16)))


def test_a_huge_header_length_is_refused_without_reading(tmp_path: Path) -> None:
    assert "limit" in refusal(tmp_path / "m.safetensors", (2**63).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
    ],
)
def test_stand_ins_for_weights_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path / "m.safetensors", data)


def test_released_pages_leave_memory(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def resident_kib() -> int:
        return int(status.read_text().split("RssFile:")[1].split()[0])

    size = 32 << 20
    file = SafetensorsFile(save(tmp_path / "m.safetensors", {"x": np.ones(size // 4, dtype=np.float32)}))
    before = resident_kib()
    assert file.get("x").data.sum() == size // 4
    assert resident_kib() - before > size // 2048
    file.release("x")
    assert resident_kib() - before < size // 8192


NUMBERS = st.one_of(st.integers(-2, 20), st.integers(0, 2**70), st.floats(), st.none(), st.text(max_size=3))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "I64", "U8", "Q4", ""]),
                "shape": st.lists(NUMBERS, max_size=4),
                "data_offsets": st.lists(NUMBERS, max_size=3),
            }
        ),
        max_size=4,
    )
)
def test_a_generated_header_is_read_or_refused(tmp_path: Path, header: dict[str, object]) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack(header, bytes(64)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        SafetensorsFile(path)
    except CheckpointError:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
