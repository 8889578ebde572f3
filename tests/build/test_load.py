from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from octavo.build.load import stream
from octavo.errors import CheckpointError
from octavo.models.names import Source
from octavo.ops.contract import Param
from octavo.ops.layouts import Dense, f32_to_bf16

ORACLES = Path(__file__).parents[2] / "../shared/oracles/models"
FILE = Path("model.safetensors")


class Held:
    """A checkpoint in memory that remembers what was released."""

    folder = Path("folder")

    def __init__(self, **tensors: Dense) -> None:
        self.tensors = tensors
        self.released: list[str] = []
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def get(self, name: str) -> Dense:
        return self.tensors[name]

    def file_of(self, name: str) -> Path:
        return self.folder / FILE

    def release(self, name: str) -> None:
        self.released.append(name)


def f32(*shape: int, start: float = 0.0) -> Dense:
    count = int(np.prod(shape))
    return Dense((start + np.arange(count, dtype=np.float32)).reshape(shape), "float32")


def run(wanted: list[tuple[Param, Source]], held: Held, dtype: str = "float32") -> list[Dense]:
    sizes: list[int] = []
    items = list(stream(wanted, held, dtype, lambda name: name.startswith("ok"), sizes.append))
    assert [param for param, _ in items] == [param for param, _ in wanted]
    assert len(sizes) == len(wanted)
    return [tensor for _, tensor in items]


def matrix(rows: int, width: int, kind: str = "matrix") -> Param:
    return Param((rows, width), kind=kind, name="blocks.0.m.weight")


def test_parts_stand_below_each_other_and_spellings_are_tried_in_order() -> None:
    held = Held(q=f32(2, 3), bare_k=f32(1, 3, start=9), k=f32(1, 3, start=50), ok_extra=f32(1))
    source = Source((("model_q", "q"), ("bare_k", "k")), (2, 1))
    with pytest.raises(CheckpointError, match=r"no place for 1 .* k"):
        run([(matrix(3, 3), source)], held)
    del held.tensors["k"]
    (got,) = run([(matrix(3, 3), source)], held)
    assert got.data.tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
    assert held.released == ["q", "bare_k"]


def test_a_transposed_matrix_is_turned_round_and_contiguous() -> None:
    (got,) = run([(matrix(3, 2), Source((("w",),), (3,), transpose=True))], Held(w=f32(2, 3)))
    assert got.data.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert got.data.flags.c_contiguous


def test_vectors_are_float32_whatever_is_stored() -> None:
    param = Param((2,), name="norm.weight")
    bits = Dense(f32_to_bf16(np.array([1.5, -2.0], dtype=np.float32)), "bfloat16")
    for stored in (bits, Dense(np.array([1.5, -2.0], dtype=np.float16), "float16")):
        (got,) = run([(param, Source((("n",),), (2,)))], Held(n=stored), "bfloat16")
        assert (got.dtype, got.data.tolist()) == ("float32", [1.5, -2.0])
        assert got.data.dtype == np.float32


@pytest.mark.parametrize(
    ("stored", "dtype", "kept"),
    [
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float16", "float16"),
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float16", "bfloat16"),
        ("float16", "bfloat16", "float16"),
        ("float16", "float32", "float16"),
        ("float64", "float32", "float32"),
        ("float64", "bfloat16", "bfloat16"),
    ],
)
def test_matrices_keep_their_dtype_or_are_narrowed(stored: str, dtype: str, kept: str) -> None:
    values = np.array([[1.0, 2.5], [np.inf, np.nan]], dtype=np.float32)
    data = f32_to_bf16(values) if stored == "bfloat16" else values.astype(stored)
    for kind in ("matrix", "table"):
        (got,) = run([(matrix(2, 2, kind), Source((("w",),), (2,)))], Held(w=Dense(data, stored)), dtype)
        assert got.dtype == kept
        assert np.array_equal(got.dequantize(), values, equal_nan=True)


def test_parts_of_two_dtypes_lose_nothing() -> None:
    held = Held(a=Dense(np.full((1, 2), 0.1, dtype=np.float16), "float16"), b=f32(1, 2, start=0.1))
    (got,) = run([(matrix(2, 2), Source((("a",), ("b",)), (1, 1)))], held)
    assert got.dtype == "float32"
    assert np.array_equal(got.data, np.concatenate([held.tensors["a"].dequantize(), held.tensors["b"].data]))


def test_rounding_in_chunks_equals_rounding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.build.load._CHUNK_ELEMENTS", 7)
    values = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
    (got,) = run([(matrix(11, 3), Source((("w",),), (11,)))], Held(w=Dense(values, "float32")), "bfloat16")
    assert np.array_equal(got.data, f32_to_bf16(values))


def test_float16_overflow_names_the_tensor_and_the_way_out() -> None:
    held = Held(w=Dense(np.array([[1.0, 7e4]], dtype=np.float32), "float32"))
    with pytest.raises(CheckpointError, match=r"Tensor w in folder/model.safetensors holds 70000.*bfloat16"):
        run([(matrix(1, 2), Source((("w",),), (1,)))], held, "float16")


def test_missing_tensors_are_refused_before_any_is_read() -> None:
    held = Held(a=f32(2, 2))
    wanted = [(matrix(2, 2), Source((("a",),), (2,))), (matrix(5, 2), Source((("x", "y"), ("z",)), (2, 3)))]
    with pytest.raises(CheckpointError) as caught:
        stream(wanted, held, "float32", lambda _: False, lambda _: None)
    said = str(caught.value)
    assert "Tensor x is missing from folder (nor as y); expected shape [2, 2]. 1 more are missing." in said


def test_a_wrong_shape_shows_both() -> None:
    with pytest.raises(
        CheckpointError, match=r"w in folder/model.safetensors has shape \[2, 3\], expected \[3, 2\]"
    ):
        run([(matrix(3, 2), Source((("w",),), (3,)))], Held(w=f32(2, 3)))


def test_left_over_tensors_are_listed_up_to_five() -> None:
    held = Held(w=f32(1, 1), **{f"z{i}": f32(1) for i in range(7)})
    with pytest.raises(CheckpointError, match=r"7 of the tensors .*: z0, z1, z2, z3, z4 and 2 more"):
        run([(matrix(1, 1), Source((("w",),), (1,)))], held)


def test_integers_are_no_weights() -> None:
    held = Held(w=Dense(np.zeros((1, 1), dtype=np.int32), "int32"))
    with pytest.raises(CheckpointError, match="int32"):
        run([(matrix(1, 1), Source((("w",),), (1,)))], held)


@pytest.mark.skipif(not ORACLES.exists(), reason="needs ../shared/oracles")
@pytest.mark.parametrize(
    "name", ["llama", "llama-sharded", "llama-f16-bin", "llama-tied-f32", "gpt2", "phi3"]
)
def test_an_oracle_loads_whole(name: str) -> None:
    from octavo.build.declare import declare
    from octavo.build.load import load
    from octavo.config.arch import read_arch
    from octavo.weights.checkpoint import open_checkpoint
    from octavo.weights.dummy import DummyWeights

    model = declare(read_arch(json.loads((ORACLES / name / "config.json").read_text())))
    checkpoint = open_checkpoint(ORACLES / name)
    sizes: list[int] = []
    loaded = [
        (param.name, tensor.shape)
        for param, tensor in load(model, checkpoint, "float32", on_bytes=sizes.append)
    ]
    assert loaded == [(path, param.shape) for path, param in model.named_params()]
    assert 0 < sum(sizes) <= checkpoint.nbytes
    made = [(param.name, tensor.shape) for param, tensor in load(model, DummyWeights("bfloat16"), "bfloat16")]
    assert made == loaded


def memory_mib(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory counter")
def test_peak_memory_stays_near_one_copy(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from octavo.weights.checkpoint import open_checkpoint

    save_file(
        {f"w{i}": np.full((512, 4096), i, np.float16) for i in range(16)}, tmp_path / "model.safetensors"
    )
    wanted = [(matrix(1024, 4096), Source(((f"w{i}",), (f"w{i + 1}",)), (512, 512))) for i in range(0, 16, 2)]
    checkpoint = open_checkpoint(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")
    before, packed = memory_mib("VmRSS"), []
    for _, tensor in stream(wanted, checkpoint, "float32", lambda _: False, lambda _: None):
        packed.append(tensor.data.copy())
    assert sum(array.nbytes for array in packed) == checkpoint.nbytes == 64 << 20
    assert memory_mib("VmHWM") - before < 1.3 * 64
