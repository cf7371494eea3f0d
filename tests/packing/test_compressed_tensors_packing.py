"""compressed-tensors' layouts: its own code and a naive loop as oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.packing.compressed_tensors import pack, pack_bytes, unpack, unpack_bytes
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.qtensor import QTensor


def example(name: str, rows: int = 6, columns: int = 128, seed: int = 0) -> QTensor:
    generator, target = np.random.default_rng(seed), grid(name)
    groups = columns // target.group if target.group else 1
    codes = generator.integers(0, 1 << target.bits, (rows, columns), dtype=np.uint8)
    scale = generator.normal(0, 1, (rows, groups)).astype(np.float16)
    offset = generator.integers(0, 1 << target.bits, (rows, groups), dtype=np.uint8)
    return QTensor(target, codes, scale, None if target.symmetric else offset)


def naive_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words of rows of codes, one bit field at a time."""
    per_word = 32 // bits
    words = np.zeros((len(codes), -(-codes.shape[1] // per_word)), np.uint64)
    for row, values in enumerate(codes):
        for i, code in enumerate(values):
            words[row, i // per_word] |= np.uint64(int(code) << (bits * (i % per_word)))
    return words.astype(np.uint32).view(np.int32)


def test_golden_words():
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 15], [8, 0, 0, 0, 0, 0, 0, 9]], np.uint8)
    packed = pack(QTensor(grid("int4-channel"), codes, np.ones((2, 1), np.float16)))
    assert packed["weight_packed"].astype("<i4").tobytes().hex() == "214365f708000090"
    assert packed["weight_shape"].tolist() == [2, 8]
    packed = pack(QTensor(grid("int8-channel"), codes[:1] + 120, np.ones((1, 1), np.float16)))
    assert packed["weight_packed"].astype("<i4").tobytes().hex() == "797a7b7c7d7e7f87"


@pytest.mark.parametrize("columns", [32, 33, 47, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_a_naive_loop(bits, columns):
    q = example(f"int{bits}-channel", 3, columns)
    np.testing.assert_array_equal(pack(q)["weight_packed"], naive_words(q.codes, bits))


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128", "int4-channel", "int8-channel", "int8-g64"])
def test_words_are_those_of_compressed_tensors(name):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    torch = pytest.importorskip("torch")
    q = example(name, 5)
    middle = 1 << (q.grid.bits - 1)
    signed = torch.from_numpy((q.codes.astype(np.int16) - middle).astype(np.int8))
    theirs = helpers.pack_to_int32(signed, q.grid.bits)
    ours = pack(q)
    np.testing.assert_array_equal(ours["weight_packed"], theirs.numpy())
    back = helpers.unpack_from_int32(
        torch.from_numpy(ours["weight_packed"]), q.grid.bits, torch.Size(ours["weight_shape"])
    )
    np.testing.assert_array_equal(back.numpy(), signed.numpy())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["int4-g32", "int4-channel", "int8-g64", "int8-channel"]),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_there_and_back(name, rows, seed):
    q = example(name, rows, 192, seed)
    packed = pack(q)
    back = unpack(packed["weight_packed"], packed["weight_scale"], q.shape, q.grid.bits, q.grid.group)
    assert back.grid == q.grid and back.scale.dtype == np.float16
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scale, q.scale)


def test_chunks_of_rows_are_rows_of_the_whole():
    q = example("int4-g32", 7)
    whole, part = pack(q), pack(q.take_rows(slice(2, 5)))
    for name in ("weight_packed", "weight_scale"):
        np.testing.assert_array_equal(part[name], whole[name][2:5])


@pytest.mark.parametrize("name", ["int4-g32-asym", "int4-channel-asym", "int8-g64-asym"])
@pytest.mark.parametrize("rows", [5, 8, 13])
def test_zero_points_are_packed_along_the_rows(name, rows):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    torch = pytest.importorskip("torch")
    q = example(name, rows)
    bits, middle = q.grid.bits, 1 << (q.grid.bits - 1)
    signed = [
        torch.from_numpy((part.astype(np.int16) - middle).astype(np.int8)) for part in (q.codes, q.offset)
    ]
    words = helpers.pack_to_int32(signed[0], bits).numpy()
    zero = helpers.pack_to_int32(signed[1], bits, packed_dim=0).numpy()
    back = unpack(words, q.scale.astype(np.float32), q.shape, bits, q.grid.group, zero)
    assert back.grid == q.grid and back.scale.dtype == np.float32
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.offset, q.offset)
    expected = (
        signed[0].numpy().astype(np.float32).reshape(rows, back.scale.shape[1], -1)
        - signed[1].numpy().astype(np.float32)[..., None]
    ) * back.scale[..., None]
    np.testing.assert_array_equal(back.dequantize(), expected.reshape(q.shape))


def test_plain_bytes():
    q = example("int8-channel")
    made = pack_bytes(q)
    assert made["weight"].dtype == np.int8 and made["weight_scale"].dtype == np.float32
    np.testing.assert_array_equal(made["weight"], q.codes.astype(np.int16) - 128)
    np.testing.assert_array_equal(made["weight"] * made["weight_scale"], q.dequantize())
    back = unpack_bytes(made["weight"], made["weight_scale"])
    np.testing.assert_array_equal(back.codes, q.codes)
    zero = np.array([[-128], [0], [5], [127], [1], [2]], np.int8)
    shifted = unpack_bytes(made["weight"], made["weight_scale"], zero_point=zero)
    assert shifted.grid.name == "int8-channel-asym"
    expected = (made["weight"].astype(np.float32) - zero) * made["weight_scale"]
    np.testing.assert_array_equal(shifted.dequantize(), expected)


def test_refusals():
    for name in ("int2-g32", "int3-g32", "int5-g32", "int6-g32", "int4-g32-asym"):
        with pytest.raises(UnsupportedError, match="use int4-g32"):
            pack(example(name))
    with pytest.raises(UnsupportedError, match="use int8-channel"):
        pack_bytes(example("int4-channel"))
    words, scale = np.zeros((2, 8), np.int32), np.ones((2, 2), np.float16)
    with pytest.raises(UnsupportedError, match="3 bits"):
        unpack(words, scale, (2, 64), 3, 32)
    with pytest.raises(UnsupportedError, match="groups of 40"):
        unpack(words, scale, (2, 64), 4, 40)
    with pytest.raises(InputError, match="divide"):
        unpack(words, scale, (2, 60), 4, 32)
    with pytest.raises(InputError, match="do not fit"):
        unpack(words, scale, (2, 128), 4, 32)
    with pytest.raises(InputError, match="do not fit"):
        unpack(words, scale[:, :1], (2, 64), 4, 32)
    with pytest.raises(InputError, match="zero points"):
        unpack(words, scale, (2, 64), 4, 32, np.zeros((2, 2), np.int32))
    with pytest.raises(InputError, match="scale"):
        unpack_bytes(np.zeros((2, 64), np.int8), np.ones((3, 1), np.float32))
