"""Files of torch.save read without torch: equal to torch.load, and never executed."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt54_convert.errors import ConvertError, InputError, UnsupportedError
from gpt54_convert.formats import torch_zip

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def check(path: Path, saved: dict[str, torch.Tensor]) -> None:
    ours, loaded = torch_zip.read(path), torch.load(path, weights_only=False)
    assert list(ours) == list(saved)
    for name, tensor in ours.items():
        wanted = loaded[name]
        assert tensor.shape == tuple(wanted.shape)
        assert tensor.rows(0, tensor.row_count).tobytes() == bits(wanted)
        if tensor.row_count > 2:
            assert tensor.rows(1, 2).tobytes() == bits(wanted[1:2])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_types(tmp_path: Path, protocol: int) -> None:
    saved = OrderedDict()
    for name in DTYPES:
        values = (torch.rand(5, 4) * 100).to(getattr(torch, name))
        saved[name], saved[f"{name}.part"] = values, values[2:]
    torch.save(saved, tmp_path / "x.bin", pickle_protocol=protocol)
    check(tmp_path / "x.bin", saved)


def test_layouts(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    saved = {
        "plain": base,
        "transposed": base.t(),
        "corner": base[1:4, 2:5],
        "corner.transposed": base[1:4, 2:5].t(),
        "every second row": base[::2],
        "every second column": base[:, ::2],
        "one row": base[3],
        "one column": base[:, 3],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base + 1),
        "cube": torch.randn(3, 4, 5)[:, 1:],
        "far rows": torch.randn(4, 1000)[:, :3],
        "one by one": torch.randn(1, 1).t(),
    }
    torch.save(saved, tmp_path / "x.bin")
    check(tmp_path / "x.bin", saved)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_any_view_is_read_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], data: st.DataObject
) -> None:
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    for axis in range(tensor.dim()):
        start = data.draw(st.integers(0, tensor.shape[axis] - 1))
        step = data.draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
    tensor = tensor.permute(data.draw(st.permutations(range(tensor.dim()))))
    path = tmp_path_factory.mktemp("view") / "x.bin"
    torch.save({"w": tensor}, path)
    try:
        check(path, {"w": tensor})
    except UnsupportedError as error:
        assert tensor.dim() == 3 and "safetensors" in str(error)


def test_tied_weights_share_their_reader(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    torch.save({"a": base, "b": base, "c": base.t(), "d": base.clone()}, tmp_path / "x.bin")
    ours = torch_zip.read(tmp_path / "x.bin")
    assert ours["a"].read is ours["b"].read
    assert len({id(tensor.read) for tensor in ours.values()}) == 3


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_inside_a_training_state(tmp_path: Path, key: str) -> None:
    state = {"epoch": 3, "best": 1.5, "names": ["a", None, True], key: {"w": torch.ones(2)}}
    torch.save(state, tmp_path / "x.pt")
    assert list(torch_zip.read(tmp_path / "x.pt")) == ["w"]


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, pickle.loads, os.posix_spawn])
def test_pickle_attacks_are_refused_and_not_run(tmp_path: Path, function: Any) -> None:
    mark = tmp_path / "executed"
    torch.save({"w": torch.ones(2), "x": Attack(function, f"touch {mark}")}, tmp_path / "x.bin")
    with pytest.raises(InputError, match=rf"refers to \w+\.{function.__name__}.*safetensors") as caught:
        torch_zip.read(tmp_path / "x.bin")
    assert "x.bin" in str(caught.value)
    assert not mark.exists()


def test_attack_through_torchs_own_names(tmp_path: Path) -> None:
    for found in (torch.load, torch.hub.load, torch.nn.Linear):
        torch.save({"x": Attack(found, "y")}, tmp_path / "x.bin")
        with pytest.raises(InputError, match="refers to torch"):
            torch_zip.read(tmp_path / "x.bin")


def archive(path: Path, raw_pickle: bytes, storage: bytes = b"\0" * 16, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", raw_pickle)
        file.writestr("a/data/0", storage)
        for name, content in more.items():
            file.writestr(f"a/{name}", content)
    return path


def described(
    count: int = 4, offset: int = 0, shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85"
) -> bytes:
    """The pickle of {"w": a tensor}, with numbers of one's choice."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x08" + struct.pack(
        "<q", count
    )
    numbers = b"\x8a\x08" + struct.pack("<q", offset) + shape + strides
    empty = b"ccollections\nOrderedDict\n)R"
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"tQ"
        + numbers
        + b"\x89"
        + empty
        + b"tRs."
    )


def test_the_handmade_pickle_is_sound(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", described(), np.arange(4, dtype=np.float32).tobytes())
    assert torch_zip.read(path)["w"].rows(1, 3).tolist() == [1, 2]


HOSTILE = {
    "reaches beyond": (described(offset=1), "reaches element 4"),
    "offset overflows": (described(offset=(1 << 63) - 1), "reaches"),
    "negative offset": (described(offset=-1), "natural"),
    "storage too short": (described(count=5), "too short"),
    "negative count": (described(count=-4), "natural"),
    "expanded": (described(shape=b"K\x04K\x04\x86", strides=b"K\0K\x01\x86"), "repeats"),
    "strides missing": (described(strides=b")"), "strides"),
    "negative size": (described(shape=b"J\xff\xff\xff\xff\x85"), "natural"),
    "huge empty": (
        described(shape=b"\x8a\x07\0\0\0\0\0\0\x01K\0\x86", strides=b"K\x01K\x01\x86"),
        "absurdly",
    ),
    "no end": (described()[:-1], "garbled|no end"),
    "nothing": (b"", "garbled|no end"),
    "not a dict": (b"\x80\x02]q\0.", "not a dict"),
    "no tensors": (b"\x80\x02}q\0.", "no tensors"),
    "stack underflow": (b"\x80\x020.", "stack is empty"),
    "mark missing": (b"\x80\x02t.", "mark is missing"),
    "memo missing": (b"\x80\x02h\x05.", "garbled"),
    "calls a number": (b"\x80\x02K\x01)R.", "no function"),
    "object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "persistent text": (b"\x80\x02Pevil\n.", "PERSID"),
    "foreign storage": (b"\x80\x02X\x01\0\0\0xQ.", "no storage"),
    "nested key": (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.", "plain value"),
    "stack of names": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "odd items": (b"\x80\x02}(K\x01u.", "no dict"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle(tmp_path: Path, name: str) -> None:
    raw, message = HOSTILE[name]
    path = archive(tmp_path / "x.bin", raw)
    with pytest.raises(ConvertError, match=message) as caught:
        torch_zip.read(path)
    assert str(path) in str(caught.value)


def test_a_long_pickle_ends_soon(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", b"\x80\x02" + b"N0" * 2_000_000 + b".")
    begin = time.monotonic()
    with pytest.raises(InputError, match="opcodes"):
        torch_zip.read(path)
    assert time.monotonic() - begin < 60


def test_old_files_are_refused_with_advice(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"torch before 1\.6.*safetensors"):
        torch_zip.read(tmp_path / "x.bin")


def test_big_endian_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="big"):
        torch_zip.read(archive(tmp_path / "x.bin", described(), byteorder=b"big"))


def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TorchScript"):
        torch_zip.read(archive(tmp_path / "x.bin", described(), **{"constants.pkl": b""}))
    with zipfile.ZipFile(tmp_path / "y.bin", "w") as file:
        file.writestr("something", b"")
    with pytest.raises(InputError, match="no torch checkpoint"):
        torch_zip.read(tmp_path / "y.bin")


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\0" * 100_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="compressed"):
        torch_zip.read(tmp_path / "x.bin")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_overlapping_and_repeated_members_are_refused(tmp_path: Path) -> None:
    raw = bytearray(archive(tmp_path / "x.bin", described()).read_bytes())
    second = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1)
    raw[second + 42 : second + 46] = (0).to_bytes(4, "little")  # the second entry points at the first member
    (tmp_path / "x.bin").write_bytes(raw)
    with pytest.raises(InputError, match=r"another name|overlap"):
        torch_zip.read(tmp_path / "x.bin")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "y.bin", "w") as file:
        file.writestr("a/data.pkl", described())
        file.writestr("a/data.pkl", described())
    with pytest.raises(InputError, match="twice"):
        torch_zip.read(tmp_path / "y.bin")


def test_every_truncation_and_every_flipped_byte(tmp_path: Path) -> None:
    whole = archive(tmp_path / "x.bin", described()).read_bytes()
    path = tmp_path / "y.bin"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            torch_zip.read(path)
    for at in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                for tensor in torch_zip.read(path).values():
                    assert tensor.size < 100
                    tensor.rows(0, tensor.row_count)
            except ConvertError as error:
                assert "y.bin" in str(error)
