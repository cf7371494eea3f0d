"""w8a8 folders: plain from_pretrained rounds weights and activations to 8 bits, as a naive loop does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from click.testing import CliRunner
from hf_models import model_of, outputs

from gpt54_convert.cli import cli
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe

KINDS = ("llama", "llama-tied", "llama-bias", "qwen2", "qwen3", "gemma3", "bert", "gpt54", "gpt54-tied")


def quantize(source: Path, output: Path, passes: tuple[Any, ...] = (), **options: Any) -> Path:
    step = Quantize(scheme="w8a8", **options)
    run(Recipe(source, step, Export(output, to=("safetensors",)), passes), Report())
    return output / "safetensors"


def rounded_inputs(model: Any, folder: Path) -> Any:
    """The float model with the folder's weights, each coded Linear's input rounded per token."""
    checkpoint = load(folder)
    state = model.state_dict()
    coded = set()
    for name, tensor in checkpoint.tensors.items():
        key = next(k for k in (name, name.removeprefix("bert.")) if k in state)
        values = tensor.read(0, tensor.row_count) if tensor.grid else tensor.float_rows(0, tensor.row_count)
        state[key].copy_(torch.from_numpy(values.copy()).reshape(tensor.shape))
        if tensor.grid:
            assert tensor.grid == "int8-channel"
            coded.add(key.removesuffix(".weight"))

    def per_token(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (x,) = inputs
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return (torch.clamp(torch.round(x / scale), -128, 127) * scale,)

    for name, module in model.named_modules():
        if name in coded:
            module.register_forward_pre_hook(per_token)
    assert len(coded) >= 12
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_activations_are_rounded(kind: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 96} if kind == "bert" else {}
    _, source = tiny.make(kind, **wide)
    folder = quantize(source, tmp_path)
    exact = outputs(model_of(kind, source, dtype=torch.float32))
    wanted = outputs(rounded_inputs(model_of(kind, source, dtype=torch.float32), folder))
    found = outputs(model_of(kind, folder))
    size = exact.square().sum()
    quantization, difference = (wanted - exact).square().sum() / size, (wanted - found).square().sum() / size
    assert 1e-7 < quantization < 0.1
    assert difference < 0.05 * quantization  # a code that falls on the other side of a tie


def test_stored_as_signed_bytes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _, source = tiny.make("llama")
    folder = quantize(source, tmp_path, keep=("attn.v=int8-g32", "ffn.down=float16"))
    weights = load_file(folder / "model.safetensors")
    stem = "model.layers.1.self_attn."
    assert weights[f"{stem}q_proj.weight"].dtype == torch.int8
    scale = weights[f"{stem}q_proj.weight_scale"]
    assert scale.dtype == torch.float32 and scale.shape == (96, 1)
    assert weights[f"{stem}v_proj.weight_packed"].dtype == torch.int32
    assert weights["model.layers.0.mlp.down_proj.weight"].dtype == torch.float16
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["format"] == "mixed-precision"
    by_format = {group["format"]: group for group in settings["config_groups"].values()}
    assert by_format["int-quantized"]["input_activations"]["strategy"] == "token"
    assert by_format["int-quantized"]["input_activations"]["dynamic"] is True
    assert by_format["pack-quantized"]["input_activations"] is None
    exact, found = outputs(model_of("llama", source)), outputs(model_of("llama", folder))
    assert 1e-7 < (exact - found).square().sum() / exact.square().sum() < 0.01


def test_gguf_has_no_such_thing(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    with pytest.raises(UnsupportedError, match=r"gguf cannot hold w8a8"):
        run(Recipe(source, Quantize(scheme="w8a8"), Export(tmp_path, to=("gguf",))), Report())


def test_verify_passes_and_says_what_it_did_not_compare(tmp_path: Path) -> None:
    words = ["quantize", "--to", "safetensors", "--scheme", "w8a8", "--smooth", "0.5", "-o", str(tmp_path)]
    assert CliRunner().invoke(cli, words).exit_code == 0
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / "safetensors")])
    assert result.exit_code == 0, result.output
    assert "changed on purpose (smooth)" in result.output
    bad = CliRunner().invoke(cli, [*words[:-3], "2", "-o", str(tmp_path / "x")])
    assert "not between 0 and 1" in str(bad.exception or bad.output)
