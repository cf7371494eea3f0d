"""MatMulNBits and GatherBlockQuantized: golden bytes, ONNX Runtime's own quantizer, its kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.packing.onnx import block_size, pack, unpack
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.qtensor import QTensor

GRIDS = [
    f"int{bits}-g{group}{asym}" for bits in (2, 4, 8) for group in (16, 32, 128) for asym in ("", "-asym")
]
GRIDS += ["int4-channel", "int8-channel", "int2-channel-asym"]


def example(name: str, rows: int = 6, columns: int = 384, seed: int = 0) -> QTensor:
    generator, target = np.random.default_rng(seed), grid(name)
    groups = columns // target.group if target.group else 1
    codes = generator.integers(0, 1 << target.bits, (rows, columns), dtype=np.uint8)
    scale = generator.normal(0, 1, (rows, groups)).astype(np.float16)
    offset = generator.integers(0, 1 << target.bits, (rows, groups), dtype=np.uint8)
    return QTensor(target, codes, scale, None if target.symmetric else offset)


def test_golden_bytes():
    codes = np.array([[1, 2, 3, 0] * 4, [0, 1, 2, 3] * 4], np.uint8)
    scale = np.array([[0.5], [-2]], np.float16)
    packed = pack(QTensor(grid("int2-g16"), codes, scale))
    assert packed["codes"].tobytes().hex() == "39393939e4e4e4e4"
    assert packed["scales"].dtype == np.float32 and packed["scales"].tolist() == [[0.5], [-2]]
    packed = pack(QTensor(grid("int4-g16-asym"), codes, scale, np.array([[9], [15]], np.uint8)))
    assert packed["codes"].tobytes().hex() == "2103" * 4 + "1032" * 4
    assert packed["zero_points"].tobytes().hex() == "090f"
    packed = pack(QTensor(grid("int8-g16"), codes + 200, scale))
    assert packed["codes"].tobytes().hex() == "c9cacbc8" * 4 + "c8c9cacb" * 4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_those_of_onnxruntimes_quantizer(bits, symmetric):
    """Its codes and scales, unpacked by a plain loop and packed by us, are its bytes again."""
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    weight = np.random.default_rng(1).standard_normal((128, 5)).astype(np.float32)  # [in, out]
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits)
    theirs, scales, zeros = quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    mask, per_byte = (1 << bits) - 1, 8 // bits
    codes = [
        [[byte >> (bits * i) & mask for byte in row.reshape(-1) for i in range(per_byte)] for row in theirs]
    ]
    offset = [[row[g // per_byte] >> (bits * (g % per_byte)) & mask for g in range(4)] for row in zeros]
    target = grid(f"int{bits}-g32" + ("" if symmetric else "-asym"))
    zero_points = None if symmetric else np.array(offset, np.uint8)
    q = QTensor(target, np.array(codes[0], np.uint8), scales, zero_points)
    assert np.abs(q.dequantize() - weight.T).max() < 1.01 * np.abs(scales).max()
    packed = pack(q)
    assert packed["codes"].tobytes() == theirs.tobytes()
    np.testing.assert_array_equal(packed["scales"], scales)
    if not symmetric:
        assert packed["zero_points"].tobytes() == zeros.tobytes()


@pytest.mark.parametrize("name", GRIDS)
def test_onnxruntime_computes_with_the_same_numbers(name):
    """Its operators read what we packed: rows exactly, products up to rounding."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    q = example(name)
    rows, columns = q.shape
    packed, block = pack(q), block_size(q.grid, columns)
    blocks = columns // block
    arrays = {**packed, "matrix": packed["codes"].reshape(rows, blocks, -1)}
    points = ["zero_points"] if "zero_points" in packed else []
    sizes = {"bits": q.grid.bits, "block_size": block, "domain": "com.microsoft"}
    nodes = [
        helper.make_node(
            "MatMulNBits", ["a", "matrix", "scales", *points], ["product"], K=columns, N=rows, **sizes
        ),
        helper.make_node(
            "GatherBlockQuantized", ["codes", "ids", "scales", *points], ["rows"],
            gather_axis=0, quantize_axis=1, **sizes,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("a", kinds.FLOAT, [3, columns]),
            helper.make_tensor_value_info("ids", kinds.INT64, [2, 3]),
        ],
        [helper.make_tensor_value_info(each, kinds.FLOAT, None) for each in ("product", "rows")],
        [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    a = np.random.default_rng(2).standard_normal((3, columns)).astype(np.float32)
    ids = np.array([[0, 5, 1], [2, 2, 4]])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    product, taken = ort.InferenceSession(model.SerializeToString(), options).run(None, {"a": a, "ids": ids})
    weight = q.dequantize()
    np.testing.assert_array_equal(taken, weight[ids])
    wanted = a.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.abs(product - wanted).max() < 1e-5 * np.abs(wanted).max()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GRIDS), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_there_and_back(name, rows, groups, seed):
    q = example(name, rows, 128 * groups, seed)
    packed = pack(q)
    assert all(part.flags.c_contiguous for part in packed.values())
    back = unpack(packed["codes"], packed["scales"], q.grid, q.shape[1], packed.get("zero_points"))
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())
    half = pack(q.take_rows(slice(1, None)))
    assert all(np.array_equal(half[key], packed[key][1:]) for key in packed)  # rows stand for themselves


@pytest.mark.parametrize("name", ["int3-g32", "int5-g32", "q4_k", "float16"])
def test_other_grids_are_refused(name):
    with pytest.raises(UnsupportedError, match="2, 4 or 8 bits"):
        block_size(grid(name), 256)


def test_rows_that_no_block_divides_are_refused():
    assert block_size(grid("int8-channel"), 48) == 16
    with pytest.raises(UnsupportedError, match="rows of 40 do not divide by 16"):
        block_size(grid("int8-channel"), 40)
    with pytest.raises(UnsupportedError, match="rows of 48 do not divide by 32"):
        block_size(grid("int4-g32"), 48)


def test_parts_that_do_not_fit_are_refused():
    packed = pack(example("int4-g32-asym"))
    with pytest.raises(InputError, match="do not fit"):
        unpack(packed["codes"][:, 1:], packed["scales"], grid("int4-g32-asym"), 384, packed["zero_points"])
    with pytest.raises(InputError, match="do not fit"):
        unpack(packed["codes"], packed["scales"], grid("int4-g32-asym"), 384)
