"""Float16 graphs: operators are joined as in float32, also where a model computes partly in float32."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
from test_onnx_float import compare
from test_onnx_refusals import job

from gpt54_convert.exporters import _onnx_norms
from gpt54_convert.recipe import Convert

WIDTH, EPSILON = 8, 1e-6
FLOATS = (np.float32, np.float16)


def norm(kind: type, scale_kind: type) -> ir.Model:
    """x·scale / √(mean x² + ε) as torch's exporter writes it, after an addition; the norm is an output."""
    h, g = (onnx.helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in (kind, scale_kind))
    wide = onnx.TensorProto.FLOAT
    lines = [
        *(
            onnx.helper.make_node("Add", ["x", "y"], ["sum"]),
            onnx.helper.make_node("Cast", ["sum"], ["wide"]),
        ),
        onnx.helper.make_node("Pow", ["wide", "two"], ["square"]),
        onnx.helper.make_node("ReduceMean", ["square", "last"], ["mean"], keepdims=1, noop_with_empty_axes=0),
        onnx.helper.make_node("Add", ["mean", "epsilon"], ["shifted"]),
        onnx.helper.make_node("Sqrt", ["shifted"], ["root"]),
        onnx.helper.make_node("Reciprocal", ["root"], ["inverse"]),
        onnx.helper.make_node("Mul", ["wide", "inverse"], ["normed"]),
        onnx.helper.make_node("Cast", ["normed"], ["narrow"], to=g),
        onnx.helper.make_node("Mul", ["scale", "narrow"], ["out"]),
    ]
    lines[1].attribute.append(onnx.helper.make_attribute("to", wide))
    constants = {"two": np.float32(2), "last": np.array([-1]), "epsilon": np.float32(EPSILON)}
    shape = ["batch", "time", WIDTH]
    graph = onnx.helper.make_graph(
        lines,
        "norm",
        [
            *(onnx.helper.make_tensor_value_info(name, h, shape) for name in "xy"),
            onnx.helper.make_tensor_value_info("scale", g, [WIDTH]),
        ],
        [
            onnx.helper.make_tensor_value_info("out", g, shape),
            onnx.helper.make_tensor_value_info("sum", h, shape),
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(("kind", "scale_kind"), list(itertools.product(FLOATS, FLOATS)))
def test_norms_of_every_pair_of_types(kind: type, scale_kind: type) -> None:
    model = norm(kind, scale_kind)
    _onnx_norms.fuse(model)
    found = Counter(node.op_type for node in model.graph)
    assert found["SkipSimplifiedLayerNormalization"] + found["SimplifiedLayerNormalization"] == 1
    assert not found["ReduceMean"]
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 2, 3, WIDTH)).astype(kind)
    scale = generator.normal(size=WIDTH).astype(scale_kind)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    out, total = session.run(["out", "sum"], {"x": x, "y": y, "scale": scale})
    wanted = (x + y).astype(np.float64)
    wanted *= scale / np.sqrt(np.square(wanted).mean(-1, keepdims=True) + EPSILON)
    tolerance = 1e-6 if np.float16 not in (kind, scale_kind) else 2e-3
    assert out.dtype == scale_kind and total.dtype == kind
    np.testing.assert_allclose(out, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "kind",
    ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma3", "gpt54", "gpt2", "bert"))],
)
def test_float16_graphs_are_joined(kind: str, tmp_path: Path) -> None:
    model, source = tiny.make(kind, dtype="float16")
    notes = job(source, Convert(), tmp_path / "out", "onnx")
    folder, kinds, types = tmp_path / "out" / "onnx", Counter(), set()
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        kinds += Counter(node.op_type for node in graph.node)
        types |= {entry.type.tensor_type.elem_type for entry in graph.output}
    assert not any("plain graph" in note for note in notes)
    assert types == {onnx.TensorProto.FLOAT16} and kinds["Attention"] and not kinds["Softmax"]
    assert 1e-6 < compare(model, folder) < 1e-2
