"""Our safetensors reader and writer against golden bytes and against the safetensors library."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, InternalError, OutputError
from gpt54_convert.formats import safetensors

TORCH = {name: getattr(torch, {"float8_e4m3": "float8_e4m3fn"}.get(name, name)) for name in STORAGE}


def tensor_of(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[LazyTensor, np.ndarray]:
    """A tensor of random bits, as the writer wants it and as an array."""
    storage = STORAGE[dtype]
    raw = np.random.default_rng(seed).integers(
        0, 2 if dtype == "bool" else 256, math.prod(shape) * storage.itemsize
    )
    values = raw.astype(np.uint8).view(storage).reshape(shape)
    rows = values if shape else values.reshape(1)
    return LazyTensor(name, shape, dtype, lambda start, stop: rows[start:stop]), values


def write(path: Path, tensors: list[LazyTensor], metadata: dict[str, str] | None = None) -> None:
    writer = safetensors.Writer(path, safetensors.plan(tensors, metadata or {}))
    for tensor in tensors:
        for start in reversed(range(tensor.row_count)):  # any order will do
            writer.put(tensor.name, start, tensor.rows(start, start + 1))
    writer.close()


def to_torch(tensor: LazyTensor, values: np.ndarray) -> torch.Tensor:
    if not values.size:
        return torch.empty(tensor.shape, dtype=TORCH[tensor.dtype])
    raw = torch.from_numpy(values.reshape(-1).view(np.uint8).copy())
    return raw.view(TORCH[tensor.dtype]).reshape(tensor.shape)


def as_bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_golden_bytes(tmp_path: Path) -> None:
    half = LazyTensor("b", (1, 2), "float16", lambda a, z: np.array([[1, -2]], np.float16)[a:z])
    single = LazyTensor("a", (2,), "float32", lambda a, z: np.array([1.5, 0], np.float32)[a:z])
    write(tmp_path / "x", [half, single], {"format": "pt"})
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"b":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]}}'
    )
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("0000c03f00000000") + bytes.fromhex("003c00c0")
    assert (tmp_path / "x").read_bytes() == len(header).to_bytes(8, "little") + header + data


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(STORAGE)), SHAPES), max_size=6), st.text(max_size=5))
def test_same_bytes_as_the_library_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, tuple[int, ...]]], odd: str
) -> None:
    folder = tmp_path_factory.mktemp("st")
    made = [tensor_of(f"{odd}{i}", dtype, shape, i) for i, (dtype, shape) in enumerate(kinds)]
    write(folder / "ours", [tensor for tensor, _ in made], {"format": "pt"})
    theirs = {tensor.name: to_torch(tensor, values) for tensor, values in made}
    save_file(theirs, folder / "theirs", {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    loaded = load_file(folder / "ours")
    for tensor, values in made:
        assert as_bits(loaded[tensor.name]) == values.tobytes()
    back = safetensors.read(folder / "theirs")
    assert set(back) == {tensor.name for tensor, _ in made}
    for tensor, values in made:
        mine = back[tensor.name]
        assert (mine.shape, mine.dtype) == (tensor.shape, tensor.dtype)
        assert mine.rows(0, mine.row_count).tobytes() == values.tobytes()


def test_rows_in_the_middle(tmp_path: Path) -> None:
    tensor, values = tensor_of("w", "bfloat16", (7, 3, 2))
    write(tmp_path / "x", [tensor])
    assert np.array_equal(safetensors.read(tmp_path / "x")["w"].rows(2, 5), values[2:5])


def test_no_metadata_and_no_tensors(tmp_path: Path) -> None:
    write(tmp_path / "x", [])
    assert (tmp_path / "x").read_bytes() == (8).to_bytes(8, "little") + b"{}      "
    assert safetensors.read(tmp_path / "x") == {}


def test_library_reads_metadata(tmp_path: Path) -> None:
    write(tmp_path / "x", [tensor_of("w", "float32", (2,))[0]], {"format": "pt", "key": 'ünï\n"'})
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "key": 'ünï\n"'}


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    write(tmp_path / "x", [tensor_of("w", "float32", (4, 2))[0]])
    before = len(list(Path("/proc/self/fd").iterdir()))
    tensor = safetensors.read(tmp_path / "x")["w"]
    tensor.rows(0, 4)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", [tensor_of("w", "float32", (4, 2))[0]])
    tensor = safetensors.read(tmp_path / "x")["w"]
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").unlink()
    (tmp_path / "y").write_bytes(b"")  # so that the inode is not used again
    (tmp_path / "x").write_bytes(content[:-1])
    with pytest.raises(InputError, match="changed while"):
        tensor.rows(0, 4)


def test_writer_refuses_what_it_should(tmp_path: Path) -> None:
    tensor, _ = tensor_of("w", "float32", (2,))
    layout = safetensors.plan([tensor], {})
    writer = safetensors.Writer(tmp_path / "x", layout)
    with pytest.raises(OutputError, match="cannot be written"):
        safetensors.Writer(tmp_path / "x", layout)
    writer.close()
    writer.close()
    with pytest.raises(InternalError, match="closed"):
        writer.put("w", 0, np.zeros(2, np.float32))
    with pytest.raises(InternalError, match="two tensors"):
        safetensors.plan([tensor, tensor], {})


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    writer = safetensors.Writer(tmp_path / "x", safetensors.plan([], {}))
    writer.close()
    writer._descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OutputError, match="No space left"):
        writer._write(0, memoryview(b"x"))
