from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError
from octavo.weights import opcodes
from octavo.weights.pickled import PickledFile

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch = pytest.importorskip("torch")


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, generator=generator)
    return {
        "f32": x,
        "f16": x.half(),
        "bf16": x.bfloat16(),
        "f64": x.double(),
        "ids": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "transposed": x.T,
        "row": x[2],
        "column": x[:, 1],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(x[1:]),
        "note": "not a tensor",
        "step": 17,
    }


def same(file: PickledFile, wanted: dict[str, Any]) -> None:
    tensors = {name: value for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        got = file.get(name)
        assert got.dtype == str(tensor.dtype).removeprefix("torch.")
        assert got.shape == tuple(tensor.shape)
        assert np.array_equal(got.dequantize(), tensor.detach().float().numpy()), name
        assert not got.data.flags.writeable
        file.release(name)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_equal_torch(tmp_path: Path, as_zip: bool) -> None:
    wanted = state()
    torch.save(wanted, tmp_path / "m.bin", _use_new_zipfile_serialization=as_zip)
    same(PickledFile(tmp_path / "m.bin"), wanted)


def test_a_module_state_with_metadata_and_a_wrapper(tmp_path: Path) -> None:
    wanted = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()
    torch.save(wanted, tmp_path / "m.bin")
    same(PickledFile(tmp_path / "m.bin"), wanted)
    torch.save({"state_dict": wanted, "epoch": 3}, tmp_path / "m.pt", pickle_protocol=4)
    same(PickledFile(tmp_path / "m.pt"), wanted)


@pytest.mark.parametrize("older", [False, True])
def test_the_parts_of_torchaos_tensors_have_names(tmp_path: Path, monkeypatch: Any, older: bool) -> None:
    class Int8Tensor(torch.Tensor):
        """As torchao's: a wrapper around a tensor of codes and one of scales."""

        @staticmethod
        def __new__(cls, codes: Any, scale: Any) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.bfloat16)

        def __init__(self, codes: Any, scale: Any) -> None:
            self.qdata, self.scale, self.block_size, self.zero_point = codes, scale, [1, 3], None
            self.how = Kind()
            if older:
                self.tensor_impl = Impl(codes, scale)
                del self.qdata, self.scale

        __torch_dispatch__ = classmethod(lambda cls, *_: NotImplemented)

    class Impl(Int8Tensor):
        """What an AffineQuantizedTensor is made of."""

        def __init__(self, codes: Any, scale: Any) -> None:
            self.int_data, self.scale = codes, scale

    class Kind:
        def __init__(self) -> None:
            self.wide = 8

    module: Any = types.ModuleType("torchao.quantization")
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    for kind in (Int8Tensor, Impl, Kind):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    codes, scale = torch.arange(6, dtype=torch.int8).reshape(2, 3), torch.ones(2, 1).to(torch.float8_e4m3fn)
    torch.save({"a.b.weight": Int8Tensor(codes, scale), "a.norm": torch.ones(3)}, tmp_path / "m.bin")
    file = PickledFile(tmp_path / "m.bin")
    assert set(file.entries) == {"a.b._weight_qdata", "a.b._weight_scale", "a.norm"}
    np.testing.assert_array_equal(file.get("a.b._weight_qdata").data, codes.numpy())
    assert file.get("a.b._weight_scale").dtype == "float8_e4m3fn"
    np.testing.assert_array_equal(file.get("a.b._weight_scale").data, scale.view(torch.uint8).numpy())


@pytest.mark.parametrize("older", [False, True])
def test_modules_of_hqqs_own_files_become_tensors(tmp_path: Path, older: bool) -> None:
    codes, scale = torch.arange(6, dtype=torch.uint8).reshape(2, 3), torch.ones(2, 1)
    inner = {"scale": scale, "axis": 0, "packing": None}
    said = {"nbits": 4, "shape": torch.Size([4, 3]), "packing": "4bit_u8", "view_as_float": False}
    meta = {**said, "compute_dtype": torch.float16, "scale_q": codes, "meta_scale": inner, "group_size": None}
    module = {"W_q": codes, "bias": None, "meta": meta} if older else {"W_q": codes, **meta}
    torch.save({"m.q": module, "m.norm": {"weight": scale}}, tmp_path / "qmodel.pt")
    file = PickledFile(tmp_path / "qmodel.pt")
    tensors = {"m.q.W_q", "m.q.scale_q", "m.q.meta_scale.scale", "m.norm.weight"}
    words = {f"m.q.{word}" for word in (*said, "compute_dtype", "meta_scale.axis")}
    assert set(file.entries) == tensors | words
    assert file.described("m.q.shape") == ("int64", (2,))
    found = {name: file.get(name).data for name in words}
    assert found["m.q.shape"].tolist() == [4, 3]
    assert found["m.q.packing"].tobytes() == b"4bit_u8"
    assert found["m.q.compute_dtype"].tobytes() == b"torch.float16"
    assert (found["m.q.nbits"], found["m.q.view_as_float"]) == (4, 0)
    np.testing.assert_array_equal(file.get("m.q.W_q").data, codes.numpy())
    for name in file.entries:
        file.release(name)


def test_modules_that_are_one_many_times_are_not_counted_for_ever() -> None:
    shared: dict[str, Any] = {f"w{i}": 1 for i in range(3000)}
    shared |= {"W_q": 1, "again": shared}
    with pytest.raises(opcodes.Refused, match="more than 1048576 entries"):
        list(opcodes.tensors({f"m{i}": shared for i in range(3000)}))


def test_modules_that_hold_each_other_are_not_walked_for_ever() -> None:
    empty: dict[str, Any] = {}
    empty |= {f"e{i}": empty for i in range(3000)}
    with pytest.raises(opcodes.Refused, match="more than 1048576 entries"):
        list(opcodes.tensors({"m": {"W_q": None}, "e": empty}))


def test_words_and_numbers_of_modules_are_short() -> None:
    module = {"W_q": 1, "word": "x" * 10_000, "numbers": (1,) * 10_000, "n" * 10_000: 1, (1, 2): 1, 3: 4}
    assert [name for name, _ in opcodes.tensors({"m": module})] == ["m.W_q"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo owned > owned.txt",)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, as_zip: bool, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, tmp_path / "m.bin", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"posix\.system.*safetensors"):
        PickledFile(tmp_path / "m.bin")
    assert not (tmp_path / "owned.txt").exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(CheckpointError, match="older format"):
        PickledFile(tmp_path / "m.bin")


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def rezipped(data: bytes, **changes: Any) -> bytes:
    """The same zip with another compression, or with one entry's bytes replaced or dropped (None)."""
    out = io.BytesIO()
    replace = changes.get("replace", {})
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", changes.get("method", 0)) as new:
        for info in old.infolist():
            content = replace.get(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return out.getvalue()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        PickledFile(path)
    return str(caught.value)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    data = saved({"x": torch.zeros(100_000)})
    assert "compressed" in refusal(tmp_path / "m.bin", rezipped(data, method=zipfile.ZIP_DEFLATED))


def test_missing_and_wrong_storages_are_refused(tmp_path: Path) -> None:
    data = saved({"x": torch.zeros(10)})
    assert "missing" in refusal(tmp_path / "m.bin", rezipped(data, replace={"archive/data/0": None}))
    said = refusal(tmp_path / "m.bin", rezipped(data, replace={"archive/data/0": bytes(39)}))
    assert "39 bytes" in said
    assert "take 40" in said
    assert "little-endian" in refusal(
        tmp_path / "m.bin", rezipped(data, replace={"archive/byteorder": b"big"})
    )


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path: Path, as_zip: bool) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "m.bin", _use_new_zipfile_serialization=as_zip)
    data = (tmp_path / "m.bin").read_bytes()
    assert "truncated" in refusal(tmp_path / "m.bin", data[: len(data) // 2])


def stream(storage: tuple[Any, ...], offset: Any, shape: Any, strides: Any) -> bytes:
    """The opcodes of one tensor that says whatever a test wants it to say."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2, (Storage(), offset, shape, strides, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return storage if isinstance(value, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"x": Tensor()})
    return out.getvalue()


GOOD = ("storage", torch.FloatStorage, "0", "cpu", 10)


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "strides"),
    [
        (GOOD, 0, (11,), (1,)),
        (GOOD, 5, (6,), (1,)),
        (GOOD, -1, (2,), (1,)),
        (GOOD, 0, (2,), (-1,)),
        (GOOD, 0, (3, 3), (5, 1)),
        (GOOD, 0, (2**40,), (0,)),
        (GOOD, 0, (0, 2**40, 2**40), (1, 1, 1)),
        (GOOD, 0, (2,), (1, 1)),
        (GOOD, 0, [2], (1,)),
        (GOOD, True, (2,), (1,)),
        (GOOD, 0, (2**600,), (1,)),
        (("storage", torch.FloatStorage, "0", "cpu", -1), 0, (), ()),
        (("storage", torch.FloatStorage, 0, "cpu", 10), 0, (1,), (1,)),
        (("storage", "FloatStorage", "0", "cpu", 10), 0, (1,), (1,)),
        (("module", torch.FloatStorage, "0", "cpu", 10), 0, (1,), (1,)),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    storage: Any, offset: Any, shape: Any, strides: Any
) -> None:
    with pytest.raises(opcodes.Refused):
        opcodes.run(io.BytesIO(stream(storage, offset, shape, strides)))


def test_a_tensor_inside_its_storage_is_described() -> None:
    value = opcodes.run(io.BytesIO(stream(GOOD, 1, (3, 3), (3, 1))))
    view = dict(opcodes.tensors(value))["x"]
    assert (view.offset, view.shape, view.strides, view.storage.elements) == (1, (3, 3), (3, 1), 10)


def test_nested_keys_do_not_take_exponential_time() -> None:
    raw = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    with pytest.raises(opcodes.Refused):
        opcodes.run(io.BytesIO(raw))


VALID = saved({"x": torch.arange(6.0).reshape(2, 3), "y": torch.zeros(2).half()})
STREAM = zipfile.ZipFile(io.BytesIO(VALID)).read("archive/data.pkl")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([VALID, STREAM]))
    raw = bytearray(source)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.bin"
    whole = bytes(raw) if source is VALID else rezipped(VALID, replace={"archive/data.pkl": bytes(raw)})
    path.write_bytes(whole)
    try:
        file = PickledFile(path)
    except CheckpointError:
        return
    for name in file.entries:
        assert file.get(name).nbytes <= len(whole)


def test_a_local_header_that_points_outside_is_refused(tmp_path: Path) -> None:
    raw = bytearray(VALID)
    struct.pack_into("<H", raw, 28, 0xFFFF)
    assert refusal(tmp_path / "m.bin", bytes(raw))
