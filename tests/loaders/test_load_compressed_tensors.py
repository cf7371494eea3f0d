"""Folders that compressed-tensors itself wrote, and ones that are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from pump import export, quantized
from safetensors.torch import load_file, save_file

from gpt54_convert.errors import ConvertError, InputError, UnsupportedError
from gpt54_convert.exporters import safetensors as exporter
from gpt54_convert.loaders import load

NAME = "model.layers.0.mlp.up_proj"


def written_by_them(folder: Path, form: str, **weights: Any) -> tuple[Path, torch.Tensor]:
    """A llama of which one module was compressed by the library, and what it decompresses to."""
    shutil.copytree(tiny.make("llama")[1], folder)
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop(f"{NAME}.weight")
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    groups = weight.shape[1] // (args.group_size or weight.shape[1])
    bound = 2 ** (args.num_bits - 1)
    parts = weight.reshape(weight.shape[0], groups, -1)
    if args.symmetric:
        scale, zero = (parts.abs().amax(-1) / bound).half(), None
    else:
        low, high = parts.amin(-1), parts.amax(-1)
        scale = ((high - low) / (2 * bound - 1)).half()
        zero = (torch.round(-bound - low / scale.float())).clamp(-bound, bound - 1).to(torch.int8)
    state = {"weight": weight, "weight_scale": scale.float()}
    if zero is not None:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(dict(state), scheme)
    wanted = compressor.decompress(dict(stored), scheme)["weight"]
    tensors |= {f"{NAME}.{key}": value.contiguous() for key, value in stored.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder, "compressed-tensors", form, weights)
    return folder, wanted


def change(folder: Path, method: str, form: str, weights: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    config["quantization_config"] = {
        "quant_method": method,
        "format": form,
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize(
    ("form", "bits"),
    [("pack-quantized", 4), ("pack-quantized", 8), ("int-quantized", 8), ("int-quantized", 4)],
)
def test_what_they_write_we_read(
    tmp_path: Path, form: str, bits: int, group: int | None, symmetric: bool
) -> None:
    options = {
        "num_bits": bits,
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
        "group_size": group,
    }
    folder, wanted = written_by_them(tmp_path / "m", form, **options)
    tensor = load(folder).tensors[f"{NAME}.weight"]
    assert tensor.grid == f"int{bits}-{f'g{group}' if group else 'channel'}{'' if symmetric else '-asym'}"
    assert torch.equal(torch.from_numpy(tensor.rows(0, tensor.row_count)), wanted)
    assert torch.equal(torch.from_numpy(tensor.rows(5, 18)), wanted[5:18])
    q = tensor.read_codes(3, 14)
    assert q.codes.max() < 2**bits and np.array_equal(q.dequantize(), wanted[3:14].numpy())
    assert q.scale.dtype == np.float16 and (q.offset is None) == symmetric


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = quantized(exporter, load(tiny.make("llama")[1]), "int4-g32", "int8-g32")
    return export(exporter, checkpoint, tmp_path / "m")


def rewrite(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_of_other_types(folder: Path, dtype: torch.dtype) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.weight_scale"] = (tensors[f"{NAME}.weight_scale"].bfloat16()).to(dtype)

    rewrite(folder, edit)
    tensor = load(folder).tensors[f"{NAME}.weight"]
    assert np.array_equal(tensor.read_codes(0, 9).dequantize(), tensor.rows(0, 9))


def test_a_scale_that_float16_cannot_hold(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({f"{NAME}.weight_scale": t[f"{NAME}.weight_scale"].float() * 1.00001}))
    tensor = load(folder).tensors[f"{NAME}.weight"]
    assert np.isfinite(tensor.rows(0, 9)).all()
    with pytest.raises(InputError, match=r"up_proj\.weight: a scale in rows 0–9 is no float16 number"):
        tensor.read_codes(0, 9)


def drop(part: str) -> Any:
    return lambda tensors: tensors.pop(f"{NAME}.{part}")


def put(part: str, value: torch.Tensor) -> Any:
    return lambda tensors: tensors.update({f"{NAME}.{part}": value})


DAMAGE = {
    "no scale": (drop("weight_scale"), "weight_scale or weight_shape is missing"),
    "no shape": (drop("weight_shape"), "weight_scale or weight_shape is missing"),
    "no weight": (drop("weight_packed"), "the weight it belongs to is missing"),
    "wrong shape": (put("weight_shape", torch.tensor([96, 65])), "fits no group"),
    "negative shape": (put("weight_shape", torch.tensor([-96, -64])), "fits no group"),
    "huge shape": (put("weight_shape", torch.tensor([96, 1 << 62])), "fits no group"),
    "shape of three": (put("weight_shape", torch.tensor([96, 64, 1])), "missing"),
    "scale of other rows": (put("weight_scale", torch.ones(95, 2).half()), "does not fit"),
    "scale of odd groups": (put("weight_scale", torch.ones(96, 3).half()), "does not fit"),
    "scale of integers": (put("weight_scale", torch.ones(96, 2).int()), "does not fit"),
    "no groups": (put("weight_scale", torch.ones(96, 0).half()), "does not fit"),
    "small groups": (put("weight_scale", torch.ones(96, 32).half()), "groups of 2 cannot be read"),
    "bytes": (put("weight_packed", torch.ones(96, 32, dtype=torch.uint8)), "no packed integers"),
    "activation order": (put("weight_g_idx", torch.ones(64, dtype=torch.int32)), "activation order"),
    "zero points of nobody": (
        put("weight_zero_point", torch.ones(12, 2, dtype=torch.int32)),
        "fits no group",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(folder: Path, name: str) -> None:
    edit, message = DAMAGE[name]
    rewrite(folder, edit)
    with pytest.raises(ConvertError, match=message) as caught:
        load(folder)
    assert "up_proj" in str(caught.value)


SCHEMES: tuple[tuple[str, Any, str], ...] = (
    ("float-quantized", {"type": "float", "num_bits": 8}, "float-quantized cannot be read"),
    ("nvfp4-pack-quantized", {"type": "float", "num_bits": 4}, "nvfp4-pack-quantized cannot be read"),
    ("pack-quantized", {"num_bits": 3}, "3 bits cannot be read"),
    ("pack-quantized", {"num_bits": None}, "bits cannot be read"),
    ("marlin-24", {"num_bits": 4}, "marlin-24 cannot be read"),
)


@pytest.mark.parametrize(("form", "weights", "message"), SCHEMES)
def test_other_formats_are_named(folder: Path, form: str, weights: Any, message: str) -> None:
    change(folder, "compressed-tensors", form, weights)
    with pytest.raises(UnsupportedError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        "x",
        3,
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": 1}},
    ],
)
def test_garbled_settings(folder: Path, settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantization_config"):
        load(folder)
