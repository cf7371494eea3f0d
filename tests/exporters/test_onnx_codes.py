"""Integer codes in ONNX: the same integers as in the other containers of the run, computed with exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from gguf import GGUFReader
from onnx_arrays import arrays
from pump import export, quantized
from safetensors.numpy import load_file
from test_onnx_float import compare

from gpt54_convert.core.report import Report
from gpt54_convert.exporters import _onnx_bind
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.quantize.grids import grid
from gpt54_convert.recipe import Export, Quantize, Recipe


def nibbles(data: np.ndarray) -> np.ndarray:
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that writes all containers; rows divide by 32 in every matrix."""
    output = tmp_path_factory.mktemp("three")
    _, source = tiny.make("qwen2")  # its GGUF keeps the order of rows
    run(Recipe(source, Quantize(scheme="int4"), Export(output=output)), Report())
    return output


def test_codes_and_scales_are_those_of_the_other_containers(three: Path) -> None:
    found = arrays(three / "onnx" / "model.onnx")
    packed = load_file(three / "safetensors" / "model.safetensors")
    gguf = {each.name: each for each in GGUFReader(next((three / "gguf").glob("*.gguf"))).tensors}
    names = {"self_attn.q_proj": "attn_q", "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down"}
    for layer in (0, 1):
        for name, ggml in names.items():
            stem = f"model.layers.{layer}.{name}.weight"
            codes = nibbles(found[f"{stem}.codes"].reshape(len(found[f"{stem}.codes"]), -1))
            scales = found[f"{stem}.scales"]
            words = packed[f"{stem}_packed"].view(np.uint8)
            assert np.array_equal(codes, nibbles(words))
            assert np.array_equal(scales, packed[f"{stem}_scale"].astype(np.float32))
            # Q4_0: a float16 scale, then 16 bytes with elements j and j + 16
            blocks = gguf[f"blk.{layer}.{ggml}.weight"].data.reshape(len(codes), -1, 18)
            half = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
            assert np.array_equal(codes, half.reshape(len(codes), -1))
            stored = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
            assert np.array_equal(scales, stored.astype(np.float32))
    head = gguf["output.weight"].data.reshape(-1, 2, 34)  # Q8_0: a scale, then 32 signed bytes
    signed = np.ascontiguousarray(head[..., 2:]).view(np.int8).astype(np.int16) + 128
    assert np.array_equal(
        found["lm_head.weight.codes"].reshape(len(signed), -1), signed.reshape(len(signed), -1)
    )


def test_the_folder_is_complete(three: Path) -> None:
    folder = three / "onnx"
    names = {path.name for path in folder.iterdir()}
    wanted = {"model.onnx", "model.onnx_data", "config.json", "generation_config.json", "tokenizer.json"}
    assert wanted <= names and {"README.md", "manifest.json"} <= names
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    size = sum(each["size_bytes"] for each in manifest["outputs"] if each["name"] != "README.md")
    assert manifest["totals"]["size_bytes"] == size
    assert "onnxruntime" in (folder / "README.md").read_text()


def test_nothing_of_this_machine_is_in_the_graph(three: Path) -> None:
    model = onnx.load(three / "onnx" / "model.onnx", load_external_data=False)
    text = str(model)
    assert str(Path(exporter.__file__).parents[2]) not in text and "site-packages" not in text
    assert not model.metadata_props and not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama-tied", "int4-g16"),
        pytest.param("llama-tied", "int8-g32-asym", marks=pytest.mark.slow),
        pytest.param("llama-tied", "int2-g16", marks=pytest.mark.slow),
        pytest.param("gpt2", "int8-g16", marks=pytest.mark.slow),
        pytest.param("bert", "int4-g16-asym", marks=pytest.mark.slow),
        pytest.param("gpt54", "int8-channel", marks=pytest.mark.slow),
        pytest.param("gpt54-tied", "int4-g16", marks=pytest.mark.slow),
    ],
)
def test_graphs_compute_with_the_codes(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rounded activations, the graph equals transformers holding the dequantized weights."""
    monkeypatch.setattr(_onnx_bind, "ACCURACY_LEVEL", 0)
    model, source = tiny.make(kind, seed=7)
    checkpoint = load(source)
    unused = set(exporter.leaves_out(checkpoint))
    kept = checkpoint.with_tensors({n: t for n, t in checkpoint.tensors.items() if n not in unused})
    placed = quantized(exporter, kept, name)
    on_grid = [each for each in placed.tensors.values() if each.grid]
    assert len(on_grid) >= 9 and all(each.grid == grid(name).name for each in on_grid)
    folder = export(exporter, placed, tmp_path / "out")
    with_values(model, placed)
    assert compare(model, folder) < 1e-4
    kinds = [
        node.op_type
        for path in folder.glob("*.onnx")
        for node in onnx.load(path, load_external_data=False).graph.node
    ]
    assert "MatMulNBits" in kinds and "GatherBlockQuantized" in kinds


def with_values(model, checkpoint) -> None:
    """Fill a torch model with what the checkpoint's tensors stand for."""
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in checkpoint.tensors.items():
        target = parameters[name] if name in parameters else parameters[name.removeprefix("bert.")]
        value = torch.from_numpy(tensor.float_rows(0, tensor.row_count).reshape(tensor.shape).copy())
        turned = checkpoint.architecture == "gpt2" and "c_" in name and value.dim() == 2
        with torch.no_grad():
            target.copy_(value.T if turned else value)


def test_a_tied_head_shares_its_bytes(tmp_path: Path) -> None:
    _, source = tiny.make("llama-tied", seed=7)
    folder = export(exporter, quantized(exporter, load(source), "int4-g16"), tmp_path / "out")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places = {
        each.name: {entry.key: entry.value for entry in each.external_data}
        for each in model.graph.initializer
        if each.external_data
    }
    stem = "model.embed_tokens.weight"
    assert places[f"{stem}.rows"] == places[f"{stem}.codes"]
    assert "lm_head.weight.codes" not in places
