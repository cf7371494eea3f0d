"""w8a8 in ONNX: what runs is what a naive loop computes that rounds every input of a matrix as it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
import torch
from hf_models import model_of

from gpt54_convert.core.report import Report
from gpt54_convert.exporters import _onnx_int8
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.forward.onnx_model import OnnxModel
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.quantize.encode import on_grid, solver
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import grid
from gpt54_convert.recipe import Export, Quantize, Recipe

CHANGES = {"bert": {"hidden_size": 64, "intermediate_size": 96}, "gpt54": {"d_kv": 32}}
KIND_OF = {"llama-bias": "decoder", "bert": "encoder", "gpt54": "encoder-decoder", "gpt2": "decoder"}
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt54", "gpt2")]


def by_token(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What enters a module in 8 bits, with a scale for every token."""
    (x,) = inputs
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (torch.round(x / scale) * scale,)


def naive(kind: str, source: Path, hook_of: Callable[[str], Any] = lambda name: by_token) -> Any:
    """The float model with rounded weights and hooks (of a tensor) that round what enters them."""
    model, checkpoint = model_of(kind, source, dtype=torch.float32), load(source)
    modules = dict(model.named_modules())
    for name, tensor in checkpoint.tensors.items():
        module = modules.get(name.removesuffix(".weight").removeprefix("bert."))
        kept = (
            module is None
            or len(tensor.shape) != 2
            or "position" in name
            or "token_type" in name
            or "wpe" in name
        )
        if kept or "relative" in name:
            continue
        rounded = on_grid(tensor, grid("int8-channel"), solver("search"), ErrorTally())
        values = torch.from_numpy(rounded.read_codes(0, tensor.row_count).dequantize())
        conv1d = type(module).__name__ == "Conv1D"
        module.weight.data.copy_(values.T if conv1d else values)
        if not isinstance(module, torch.nn.Embedding):
            module.register_forward_pre_hook(hook_of(name))
        elif kind == "gpt2":  # the head is tied to it
            model.lm_head.weight.data.copy_(values)
            model.lm_head.register_forward_pre_hook(hook_of(name))
    return model


@pytest.mark.parametrize("kind", ["llama-bias", "bert", *SLOW])
def test_as_a_naive_loop(kind: str, tmp_path: Path) -> None:
    changes = {"n_embd": 64, "n_head": 4} if kind == "gpt2" else CHANGES.get(kind, {})
    _, source = tiny.make(kind, **changes)
    run(Recipe(source, Quantize(scheme="w8a8"), Export(tmp_path, to=("onnx",))), Report())
    row = np.random.default_rng(0).integers(3, 190, 12)
    batch = stack([Document(row, row, row[:7] if kind == "gpt54" else None)], 0)
    with OnnxModel(tmp_path / "onnx", KIND_OF[kind], 1) as model:
        found = model.logits(batch, in_two=False)
    tokens = torch.from_numpy(row)[None]
    feed = (
        {"input_ids": tokens}
        if kind != "gpt54"
        else {"input_ids": tokens[:, :7], "decoder_input_ids": tokens}
    )
    with torch.no_grad():
        answers = [m(**feed) for m in (model_of(kind, source), naive(kind, source))]
    exact, wanted = ((a.logits if "logits" in a else a.last_hidden_state).numpy() for a in answers)
    size = np.square(exact).sum()
    rounding, difference = np.square(wanted - exact).sum() / size, np.square(wanted - found).sum() / size
    assert 1e-7 < rounding < 0.2
    assert difference < 0.05 * rounding + 1e-9  # a code that falls on the other side of a tie
    graphs = [onnx.load(path, load_external_data=False).graph for path in (tmp_path / "onnx").glob("*.onnx")]
    kinds = {node.op_type for graph in graphs for node in graph.node}
    assert "MatMulInteger" in kinds and "MatMulNBits" not in kinds


def test_weights_are_made_ready_once_and_inputs_rounded_once(tmp_path: Path) -> None:
    """ONNX Runtime turns weights while loading; query, key and value share what enters them."""
    _, source = tiny.make("bert", **CHANGES["bert"])
    run(Recipe(source, Quantize(scheme="w8a8"), Export(tmp_path, to=("onnx",))), Report())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), options)
    kinds = [
        node.op_type
        for node in onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    ]
    assert kinds.count("MatMulInteger") == 12 and kinds.count("QuantizeLinear") == 8
    assert "Transpose" not in kinds


def test_one_large_token_does_not_cost_the_others() -> None:
    """Every token is rounded by itself; one of nothing but zeros stays so."""
    generator = np.random.default_rng(0)
    codes, scales = generator.integers(1, 256, (5, 64), np.uint8), generator.random((5, 2), np.float32)
    scales[:, 1] = scales[:, 0]
    x = ir.Value(name="x", shape=ir.Shape(["b", "t", 64]), type=ir.TensorType(ir.DataType.FLOAT))
    stored = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("c", codes), ("s", scales))]
    node = ir.node("MatMul", [x, stored[0]])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=stored, opset_imports={"": 21}, name="g")
    _onnx_int8.multiply(graph, node, *stored, "w")
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    tokens = generator.standard_normal((2, 3, 64), np.float32)
    tokens[0, 0] *= 1e4
    tokens[1, 2] = 0
    (found,) = onnxruntime.InferenceSession(model).run(None, {"x": tokens})
    wanted = tokens @ ((codes - 128.0) * scales[:, :1]).T
    error, size = (np.linalg.norm(each, axis=-1) for each in (found - wanted, wanted))
    assert (error <= 0.02 * size).all() and size[0, 0] > 1e3 * size[0, 1:].max()
