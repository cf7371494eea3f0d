"""Quantized folders: plain from_pretrained computes exactly what our own dequantized weights give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hf_models import model_of, outputs
from pump import export, quantized

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.exporters import safetensors as exporter
from gpt54_convert.loaders import load
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.qtensor import QTensor

# Widths that groups of 32 divide, so that every matrix takes part.
WIDE = {"hidden_size": 64, "intermediate_size": 96}
KINDS = {
    "llama": {},
    "llama-tied": {},
    "llama-bias": {},
    "mistral": {},
    "qwen2": {},
    "qwen2-tied": {},
    "qwen3": {},
    "gemma3": {},
    "bert": WIDE,
    "bert-mlm": WIDE,
    "gpt54": {"d_kv": 32},
    "gpt54-tied": {"d_kv": 32},
}
MIXES = (("int4-g32", "int8-g32"), ("int8-channel", None))


def dequantized(kind: str, source: Path, checkpoint: Checkpoint) -> torch.nn.Module:
    """The source's model in float32, its quantized weights replaced by what their codes stand for."""
    model = model_of(kind, source, dtype=torch.float32)
    state = model.state_dict()
    for name, tensor in checkpoint.tensors.items():
        if tensor.grid:
            values = torch.from_numpy(tensor.read_codes(0, tensor.row_count).dequantize())
            state[name if name in state else name.removeprefix("bert.")].copy_(values)
    return model


@pytest.mark.parametrize(("name", "head"), MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal(kind: str, name: str, head: str | None, tmp_path: Path) -> None:
    _, source = tiny.make(kind, **KINDS[kind])
    checkpoint = quantized(exporter, load(source), name, head)
    linear = [n for n, t in checkpoint.tensors.items() if t.grid]
    assert len(linear) >= 12
    folder = export(exporter, checkpoint, tmp_path / "out")
    wanted = outputs(dequantized(kind, source, checkpoint))
    assert not torch.equal(wanted, outputs(model_of(kind, source)))
    model = model_of(kind, folder)
    assert model.dtype == torch.float32
    assert torch.equal(outputs(model), wanted)


@pytest.mark.parametrize("name", ["int4-g16", "int4-channel", "int8-g32", "int8-g64"])
@pytest.mark.parametrize("kind", ["llama", "gpt54"])
def test_other_groups_and_ways_to_load(kind: str, name: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind, **KINDS[kind])
    checkpoint = quantized(exporter, load(source), name)
    folder = export(exporter, checkpoint, tmp_path / "out")
    wanted = outputs(dequantized(kind, source, checkpoint))
    for options in ({"dtype": "auto"}, {"dtype": torch.float32}):
        assert torch.equal(outputs(model_of(kind, folder, **options)), wanted)


def test_bfloat16_sources_keep_their_scales_exact(tmp_path: Path) -> None:
    _, source = tiny.make("llama", dtype="bfloat16")
    checkpoint = quantized(exporter, load(source), "int4-g32", "int8-g32")
    folder = export(exporter, checkpoint, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert torch.equal(outputs(model_of("llama", folder)), outputs(dequantized("llama", source, checkpoint)))


def test_the_bare_model_finds_its_modules_too(tmp_path: Path) -> None:
    from transformers import AutoModel

    _, source = tiny.make("llama")
    checkpoint = quantized(exporter, load(source), "int4-g32", "int8-g32")
    folder = export(exporter, checkpoint, tmp_path / "out")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        wanted = dequantized("llama", source, checkpoint).model(tokens).last_hidden_state
        assert torch.equal(AutoModel.from_pretrained(folder).eval()(tokens).last_hidden_state, wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt54", "gemma3", "bert"])
@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_codes_come_back_and_the_second_export_has_the_same_bytes(
    kind: str, shard_bytes: int | None, tmp_path: Path
) -> None:
    _, source = tiny.make(kind, **KINDS[kind])
    checkpoint = quantized(exporter, load(source), "int4-g32", None if kind == "gpt54" else "int8-g32")
    folder = export(exporter, checkpoint, tmp_path / "first", shard_bytes)
    again = load(folder)
    assert again.source.container == "compressed-tensors" and "quantization_config" not in again.config
    assert set(again.tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        mine = again.tensors[name]
        assert (mine.grid, mine.shape) == (tensor.grid, tensor.shape)
        if tensor.grid:
            before, after = tensor.read_codes(0, tensor.row_count), mine.read_codes(0, tensor.row_count)
            assert np.array_equal(before.codes, after.codes) and np.array_equal(before.scale, after.scale)
            assert np.array_equal(mine.read_codes(1, 5).codes, before.codes[1:5])
            assert np.array_equal(mine.rows(0, tensor.row_count), before.dequantize())
    second = export(exporter, again, tmp_path / "second", shard_bytes)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((folder / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_config_names_every_module_and_ignores_the_rest(tmp_path: Path) -> None:
    import re

    _, source = tiny.make("llama")
    checkpoint = quantized(exporter, load(source), "int4-g32", "int8-g32")
    kept = "model.layers.1.mlp.down_proj.weight"
    checkpoint = checkpoint.with_tensors({**checkpoint.tensors, kept: load(source).tensors[kept]})
    folder = export(exporter, checkpoint, tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == [kept.removesuffix(".weight")]
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        found = [
            group["weights"]["num_bits"]
            for group in settings["config_groups"].values()
            if any(re.match(target.removeprefix("re:"), module) for target in group["targets"])
        ]
        assert found == ([grid(tensor.grid).bits] if tensor.grid else [])
    assert torch.equal(outputs(model_of("llama", folder)), outputs(dequantized("llama", source, checkpoint)))


def test_a_tied_head_is_ignored(tmp_path: Path) -> None:
    _, source = tiny.make("llama-tied")
    folder = export(exporter, quantized(exporter, load(source), "int4-g32"), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["ignore"] == ["lm_head"]


def test_ggmls_names_of_the_same_grids_are_taken(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    plain = quantized(exporter, load(source), "int4-g32", "int8-g32")

    def renamed(tensor: object, name: str) -> object:
        def read_codes(start: int, stop: int) -> QTensor:
            return replace(tensor.read_codes(start, stop), grid=grid(name))

        return replace(tensor, grid=name, read_codes=read_codes)

    names = {"int4-g32": "q4_0", "int8-g32": "q8_0"}
    ggml = plain.with_tensors(
        {n: renamed(t, names[t.grid]) if t.grid else t for n, t in plain.tensors.items()}
    )
    first, second = export(exporter, plain, tmp_path / "a"), export(exporter, ggml, tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_what_it_refuses() -> None:
    _, source = tiny.make("llama")
    tensors = load(source).tensors
    gpt2 = load(tiny.make("gpt2")[1]).tensors
    t5 = load(tiny.make("gpt54")[1])
    query = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert exporter.refuses("attn.q", query, grid("int4-g32")) is None
    assert exporter.refuses("attn.q", query, grid("q8_0")) is None
    assert exporter.refuses("attn.q", query, grid("float16")) is None
    assert exporter.refuses("head", tensors["lm_head.weight"], grid("int8-g32")) is None
    for wrong in ("q4_k", "int4-g32-asym", "int3-g32", "mxfp4", "q4_1"):
        assert "4 and 8 bits" in exporter.refuses("attn.q", query, grid(wrong))
    # a tied embedding stands in for the head, but is read as floats all the same
    embedding = tensors["model.embed_tokens.weight"]
    for role in ("embed", "head"):
        assert "embedding" in exporter.refuses(role, embedding, grid("int8-g32"))
    fused = gpt2["transformer.h.0.attn.c_attn.weight"]
    assert "Conv1D" in exporter.refuses("attn.qkv", fused, grid("int4-g16"))
    head = t5.tensors["lm_head.weight"]
    assert "one grid only" in exporter.refuses("head", head, grid("int8-g32"), t5)


def test_a_t5_of_two_grids_is_refused_with_a_way_out(tmp_path: Path) -> None:
    from gpt54_convert.exporters._sink import SinkOptions

    checkpoint = quantized(exporter, load(tiny.make("gpt54", **KINDS["gpt54"])[1]), "int4-g32")
    other = quantized(exporter, load(tiny.make("gpt54", **KINDS["gpt54"])[1]), "int8-g32")
    name = next(name for name, tensor in checkpoint.tensors.items() if tensor.grid)
    mixed = checkpoint.with_tensors({**checkpoint.tensors, name: other.tensors[name]})
    with pytest.raises(UnsupportedError, match=r"one grid only.*--keep"):
        exporter.open_sink(mixed, tmp_path, SinkOptions("x", "y"))


def test_without_a_config_there_is_nothing_to_say_it_in(tmp_path: Path) -> None:
    from gpt54_convert.exporters._sink import SinkOptions

    checkpoint = quantized(exporter, load(tiny.make("llama")[1] / "model.safetensors"), "int4-g32")
    with pytest.raises(UnsupportedError, match=r"config\.json"):
        exporter.open_sink(checkpoint, tmp_path, SinkOptions("x", "y"))
