"""Damaged and hostile safetensors files: each ends in one clear sentence, soon and without much memory."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from gpt54_convert.errors import ConvertError, InputError, UnsupportedError
from gpt54_convert.formats import safetensors

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def put(path: Path, header: object, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"a": {**GOOD["a"], **changes}}


HOSTILE = {
    "hole before": ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}}, b"\0" * 20, "hole"),
    "overlap": (
        {"a": GOOD["a"], "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}},
        b"\0" * 24,
        "overlaps",
    ),
    "same bytes twice": ({"a": GOOD["a"], "b": GOOD["a"]}, b"\0" * 16, "overlaps"),
    "too short": (GOOD, b"\0" * 15, "truncated"),
    "something appended": (GOOD, b"\0" * 17, "appended"),
    "shape and offsets differ": (entry(shape=[2, 3]), b"\0" * 16, "takes 24 bytes"),
    "negative offsets": (entry(data_offsets=[-16, 0]), b"\0" * 16, "natural"),
    "end before begin": (entry(data_offsets=[16, 0]), b"\0" * 16, "hold -16"),
    "offsets of 64 bits": (entry(data_offsets=[0, 1 << 64]), b"\0" * 16, "natural"),
    "shape overflows": (entry(shape=[1 << 32, 1 << 32, 1 << 32]), b"\0" * 16, "takes"),
    "negative shape": (entry(shape=[-2, -2]), b"\0" * 16, "natural"),
    "shape of floats": (entry(shape=[2.0, 2]), b"\0" * 16, "natural"),
    "shape of bools": (entry(shape=[True, 4]), b"\0" * 16, "natural"),
    "shape is text": (entry(shape="22"), b"\0" * 16, "natural"),
    "many dimensions": (entry(shape=[1] * 100), b"\0" * 4, "at most 16"),
    "huge empty tensor": (entry(shape=[1 << 60, 0], data_offsets=[0, 0]), b"", "absurdly"),
    "unknown dtype": (entry(dtype="F99"), b"\0" * 16, "no data type"),
    "dtype is a list": (entry(dtype=["F32"]), b"\0" * 16, "no data type"),
    "three offsets": (entry(data_offsets=[0, 8, 16]), b"\0" * 16, "two natural"),
    "missing key": ({"a": {"dtype": "F32", "shape": [4]}}, b"\0" * 16, "and nothing else"),
    "further key": ({"a": {**GOOD["a"], "x": 1}}, b"\0" * 16, "and nothing else"),
    "entry is a list": ({"a": [1]}, b"\0" * 16, "and nothing else"),
    "metadata is no dict": ({**GOOD, "__metadata__": 3}, b"\0" * 16, "__metadata__"),
    "metadata of numbers": ({**GOOD, "__metadata__": {"a": 3}}, b"\0" * 16, "__metadata__"),
    "header is a list": ([1, 2], b"", "no(t a)? JSON object"),
    "header is garbage": (b"\xff\xfe{", b"", "invalid"),
    "header is cut": (b'{"a": ', b"", "invalid"),
    "name twice": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 1 + b'"a":1}', b"\0", "twice"),
    "deeply nested": (b"[" * 100_000, b"", "nested|invalid"),
    "huge number": (b'{"a":' + b"9" * 100_000 + b"}", b"", "invalid"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header(tmp_path: Path, name: str) -> None:
    header, data, message = HOSTILE[name]
    path = put(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InputError, match=message) as caught:
        safetensors.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_library_refuses_overlaps_and_holes_too(tmp_path: Path) -> None:
    for name in ("hole before", "overlap", "too short", "something appended", "shape and offsets differ"):
        header, data, _ = HOSTILE[name]
        path = put(tmp_path / "x.safetensors", header, data)
        with pytest.raises(SafetensorError), safe_open(path, "np"):
            pass


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (100_000_001).to_bytes(8, "little")])
def test_no_room_for_the_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=r"too few|allows|has only"):
        safetensors.read(tmp_path / "x")


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has only"):
        safetensors.read(put(tmp_path / "x", GOOD, length=1000))


def test_known_types_without_use_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="C64"):
        safetensors.read(put(tmp_path / "x", entry(dtype="C64", shape=[2])))


def test_a_header_of_millions_of_tensors_costs_little(tmp_path: Path) -> None:
    raw = b"{" + b",".join(b'"%d":{}' % i for i in range(2_000_000)) + b"}"
    path = put(tmp_path / "x", raw, b"")
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(InputError, match="hostile"):
        safetensors.read(path)
    assert time.monotonic() - begin < 2
    assert tracemalloc.get_traced_memory()[1] < 4 * len(raw)
    tracemalloc.stop()


def test_a_sparse_file_of_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = put(tmp_path / "x", entry(shape=[1 << 37], data_offsets=[0, 1 << 39]), b"")
    with pytest.raises(InputError, match="truncated"):
        safetensors.read(path)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", ".", "pipe"):
        with pytest.raises(InputError, match=r"cannot be read|regular file"):
            safetensors.read(tmp_path / name)


def test_every_truncation_and_every_flipped_byte(tmp_path: Path) -> None:
    whole = put(tmp_path / "x", {**GOOD, "__metadata__": {"format": "pt"}}).read_bytes()
    path = tmp_path / "y"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            safetensors.read(path)
    for at in range(len(whole) - 16):
        for flip in (1, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                tensors = safetensors.read(path)
            except ConvertError:
                continue
            for tensor in tensors.values():
                tensor.rows(0, tensor.row_count)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), x)
        ),
        max_leaves=10,
    )
)
def test_any_json_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, header: object) -> None:
    path = put(tmp_path_factory.mktemp("any") / "x", header, b"")
    try:
        safetensors.read(path)
    except ConvertError as error:
        assert str(error)
