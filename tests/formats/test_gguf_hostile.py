"""Damaged and hostile GGUF files: each ends in one clear sentence, at once and without large allocations."""

import contextlib
import struct
import time
import tracemalloc

import pytest

from gpt54_convert.errors import ConvertError, InputError, UnsupportedError
from gpt54_convert.formats import gguf


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def entry(name, dims=(4, 2), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))


def build(tensors=(), keys=(ARCHITECTURE,), data=None, version=3, counts=None):
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join([*keys, *tensors])
    return head + bytes(-len(head) % 32) + (bytes(64) * len(tensors) if data is None else data)


def refused(tmp_path, raw, error=InputError):
    """What reading `raw` says; it must be quick and must not allocate beyond the file's own size."""
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    gguf.ggml_types()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(error) as caught:
            gguf.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert peak < 4 << 20
    said = str(caught.value)
    assert "x.gguf" in said
    assert "\n" not in said
    return said


def test_the_sound_file_is_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(build([entry("a"), entry("b", offset=64)]))
    assert gguf.read(path).tensors.keys() == {"a", "b"}


HUGE = 2**63
CASES = {
    "not GGUF": (b"GGML" + bytes(60), "no GGUF"),
    "empty": (b"", "no GGUF"),
    "tensor count": (build(counts=(HUGE, 0)), "tensors are declared"),
    "key count": (build(counts=(0, HUGE)), "keys are declared"),
    "more keys than bytes": (build(counts=(0, 60000)), "keys are declared"),
    "key length": (build(keys=[struct.pack("<Q", HUGE) + b"x" * 64]), "name has"),
    "key length beyond the end": (build(keys=[struct.pack("<Q", 5000) + b"x" * 64]), "needs 5000 bytes"),
    "empty key": (build(keys=[text("") + bytes(64)]), "0 bytes"),
    "key no UTF-8": (build(keys=[key(b"\xff\xfe", 4, bytes(4)) + bytes(20)]), "UTF-8"),
    "key twice": (build(keys=[ARCHITECTURE, ARCHITECTURE]), "twice"),
    "key type": (build(keys=[key("a", 13, bytes(64))]), "unknown type 13"),
    "array type": (build(keys=[key("a", 9, struct.pack("<IQ", 99, 1) + bytes(64))]), "unknown type 99"),
    "array in array": (build(keys=[key("a", 9, struct.pack("<IQ", 9, 1) + bytes(64))]), "arrays of arrays"),
    "array length": (build(keys=[key("a", 9, struct.pack("<IQ", 4, HUGE) + bytes(64))]), "elements"),
    "array wraps": (build(keys=[key("a", 9, struct.pack("<IQ", 10, 2**61) + bytes(64))]), "elements"),
    "text array": (build(keys=[key("a", 9, struct.pack("<IQ", 8, 1 << 40) + bytes(64))]), "elements"),
    "text in array": (build(keys=[key("a", 9, struct.pack("<IQQ", 8, 2, HUGE) + bytes(64))]), "needs"),
    "text length": (build(keys=[key("a", 8, struct.pack("<Q", HUGE) + bytes(64))]), "needs"),
    "text no UTF-8": (build(keys=[key("a", 8, text(b"\xc3\x28"))]), "UTF-8"),
    "bool": (build(keys=[key("a", 7, b"\x02") + bytes(32)]), "truth"),
    "alignment 0": (build(keys=[key("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
    "alignment 48": (build(keys=[key("general.alignment", 4, struct.pack("<I", 48))]), "power of two"),
    "alignment text": (build(keys=[key("general.alignment", 8, text("32"))]), "power of two"),
    "alignment vast": (build(keys=[key("general.alignment", 4, struct.pack("<I", 1 << 31))]), "power of two"),
    "no dimensions": (build([entry("a", dims=())]), "0 dimensions"),
    "many dimensions": (build([entry("a", dims=(1,) * 5)]), "5 dimensions"),
    "vast dimensions": (build([text("a") + struct.pack("<I", 2**32 - 1) + bytes(64)]), "dimensions"),
    "negative dimension": (build([entry("a", dims=(4, 2**64 - 1))]), "cannot have the shape"),
    "zero dimension": (build([entry("a", dims=(4, 0))]), "cannot have the shape"),
    "size wraps": (build([entry("a", dims=(2**32, 2**32))]), "cannot have the shape"),
    "tensor type": (build([entry("a", kind=4)]), "unknown type 4"),
    "part of a block": (build([entry("a", dims=(33, 1), kind=8)]), "cannot have the shape"),
    "offset beyond the end": (build([entry("a", offset=1 << 40)]), "beyond the end"),
    "offset wraps": (build([entry("a", offset=2**64 - 32)]), "beyond the end"),
    "offset not aligned": (build([entry("a", offset=4)]), "not aligned"),
    "tensors overlap": (build([entry("a", dims=(16, 2)), entry("b", offset=64)]), "overlap"),
    "tensor twice": (build([entry("a"), entry("a", offset=64)]), "twice"),
    "no data": (build([entry("a")], data=b""), "beyond the end"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile(tmp_path, case):
    raw, words = CASES[case]
    assert words in refused(tmp_path, raw)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions_and_byte_orders(tmp_path, version):
    said = refused(tmp_path, build([entry("a")], version=version), UnsupportedError)
    assert ("big-endian" in said) == (version > 1000)


def test_cut_anywhere(tmp_path):
    texts = key("t", 9, struct.pack("<IQ", 8, 3) + text("ab") + text("") + text("c"))
    numbers = key("n", 9, struct.pack("<IQ", 6, 2) + bytes(8))
    raw = build([entry("a"), entry("b", offset=64)], [ARCHITECTURE, texts, numbers])
    needed = len(raw) - 32  # the last tensor ends half a line before the file does
    path = tmp_path / "x.gguf"
    for length in range(needed):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            gguf.read(path)


def test_any_flipped_byte_gives_an_error_or_a_file(tmp_path):
    texts = key("t", 9, struct.pack("<IQ", 8, 2) + text("ab") + text("c"))
    raw = build([entry("a"), entry("b", offset=64)], [ARCHITECTURE, texts])
    path = tmp_path / "x.gguf"
    for index in range(len(raw)):
        for value in (0, 0x7F, 0xFF, raw[index] ^ 1):
            path.write_bytes(raw[:index] + bytes([value]) + raw[index + 1 :])
            with contextlib.suppress(ConvertError):
                gguf.read(path)


def test_a_sparse_file_of_terabytes_allocates_nothing(tmp_path):
    """Counts may fit the file's size and still be absurd."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1))
        stream.write(key("a", 9, struct.pack("<IQ", 4, 1 << 36)))
        stream.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="elements"):
            gguf.read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
