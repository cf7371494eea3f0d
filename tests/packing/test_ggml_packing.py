"""GGUF's layouts: frozen bytes, gguf-py and ggml's own code as oracles, and any bytes there and back."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from golden_blocks import GOLDEN, example
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import ggml

from gpt54_convert.errors import InternalError, UnsupportedError
from gpt54_convert.packing.ggml import ggml_type, pack, unpack
from gpt54_convert.quantize.grids import FLOAT, GRIDS, SUPER, Grid, grid
from gpt54_convert.quantize.qtensor import QTensor

TYPES = [name for name, each in GRIDS.items() if each.kind != FLOAT]
SAME = {"int4-g32": "q4_0", "int5-g32": "q5_0", "int8-g32": "q8_0"}


def random_bytes(target: Grid, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * target.block_bytes), dtype=np.uint8)


def finite_bytes(target: Grid, rows: int, blocks: int) -> np.ndarray:
    """Random codes and sub-scales, but float16 scales that are ordinary numbers."""
    q = unpack(random_bytes(target, rows, blocks), target)
    generator = np.random.default_rng(1)

    def like(part):
        return None if part is None else generator.normal(0, 2, part.shape).astype(np.float16)

    if target.kind == SUPER:
        q = QTensor(target, q.codes, q.scale, q.offset, like(q.super_scale), like(q.super_offset))
    elif target.name == "mxfp4":
        q = QTensor(target, q.codes, np.minimum(q.scale, 254))  # 255 is NaN
    else:
        q = QTensor(target, q.codes, like(q.scale), like(q.offset))
    return pack(q)


@pytest.mark.parametrize("name", TYPES)
def test_golden_bytes(name):
    q = example(name)
    assert pack(q).tobytes().hex() == GOLDEN[name]
    back = unpack(np.frombuffer(bytes.fromhex(GOLDEN[name]), np.uint8)[None], grid(name))
    for part in ("codes", "scale", "offset", "super_scale", "super_offset"):
        made, found = getattr(q, part), getattr(back, part)
        assert (made is None) == (found is None), part
        if made is not None:
            assert made.dtype == found.dtype
            np.testing.assert_array_equal(made, found)


def test_two_golden_blocks_by_hand():
    """q4_0: d = -1.25 is bd00; element 0 is 3, element 16 is 7·16 + 3 + 1 = 116, so 4, hence byte 43."""
    assert GOLDEN["q4_0"].startswith("00bd43")
    # q8_0: stored as signed bytes, code - 128: element 0 is 3, so -125 = 0x83; element 1 is 10, so 0x8a.
    assert GOLDEN["q8_0"].startswith("00bd838a")


@pytest.mark.parametrize("name", TYPES)
def test_sizes_are_those_of_gguf(name):
    target = GRIDS[name]
    sizes = gguf.GGML_QUANT_SIZES[ggml.type_of(name)]
    assert (target.block, target.block_bytes) == sizes
    assert target.row_bytes(512) == ggml.row_bytes(name, 512)


@pytest.mark.parametrize("name", TYPES)
def test_values_are_those_of_gguf_py_bit_for_bit(name):
    data = finite_bytes(GRIDS[name], 5, 3)
    expected = gguf.quants.dequantize(data, ggml.type_of(name))
    found = unpack(data, GRIDS[name]).dequantize()
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("name", TYPES)
def test_values_are_those_of_ggml_bit_for_bit(name):
    if not ggml.available():
        pytest.skip(ggml.MISSING)
    data = finite_bytes(GRIDS[name], 5, 3)
    expected = ggml.dequantize(data, name, (5, 3 * GRIDS[name].block))
    found = unpack(data, GRIDS[name]).dequantize()
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TYPES), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_bytes_survive(name, rows, blocks, seed):
    data = random_bytes(GRIDS[name], rows, blocks, seed)
    np.testing.assert_array_equal(pack(unpack(data, GRIDS[name])), data)


@pytest.mark.parametrize(("name", "same"), SAME.items())
def test_integer_grids_are_the_same_bytes(name, same):
    data = random_bytes(GRIDS[same], 3, 2)
    q = unpack(data, grid(name))
    np.testing.assert_array_equal(q.codes, unpack(data, GRIDS[same]).codes)
    np.testing.assert_array_equal(pack(q, same.upper()), data)


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q6_k"])
def test_chunks_of_rows_are_rows_of_the_whole(name):
    data = random_bytes(GRIDS[name], 7, 2)
    q = unpack(data, GRIDS[name])
    np.testing.assert_array_equal(pack(q.take_rows(slice(2, 5))), data[2:5])


def test_types_of_grids():
    assert {name: ggml_type(GRIDS[name]) for name in ("float32", "float16", "bfloat16")} == {
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
    }
    assert all(ggml_type(GRIDS[name]) == name.upper() for name in TYPES)
    assert [ggml_type(grid(name)) for name in SAME] == ["Q4_0", "Q5_0", "Q8_0"]
    for name in ("int4-g64", "int4-channel", "int4-g32-asym", "int3-g32"):
        assert ggml_type(grid(name)) is None


def test_refusals():
    codes = np.zeros((1, 64), np.uint8)
    with pytest.raises(UnsupportedError, match=r"int4-g64.*use int4-g32"):
        pack(QTensor(grid("int4-g64"), codes, np.ones((1, 1), np.float16)))
    with pytest.raises(UnsupportedError, match="float16"):
        pack(QTensor(grid("int4-g32"), codes, np.full((1, 2), 1 / 3, np.float32)))
    with pytest.raises(InternalError, match="Q4_0, not as Q8_0"):
        pack(QTensor(grid("q4_0"), codes, np.ones((1, 2), np.float16)), "Q8_0")
    with pytest.raises(InternalError, match="18-byte"):
        unpack(np.zeros((1, 19), np.uint8), grid("q4_0"))


def test_float32_scales_that_float16_can_hold_are_packed():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    fine = pack(QTensor(grid("int4-g32"), codes, np.full((1, 1), -0.375, np.float32)))
    np.testing.assert_array_equal(
        fine, pack(QTensor(grid("q4_0"), codes, np.full((1, 1), -0.375, np.float16)))
    )
