"""Float model folders: transformers computes the very same from them as from the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from hf_models import model_of, outputs
from pump import export

from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters import safetensors as exporter
from gpt54_convert.loaders import load

ALL = (
    "llama",
    "llama-tied",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen3-tied",
    "gemma3",
    "gemma3-padded",
    "gpt2",
    "bert",
)
ALL = (*ALL, "bert-mlm", "gpt54", "gpt54-tied")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ALL)
def test_float_folders_compute_the_same(kind: str, dtype: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind, dtype=dtype)
    folder = export(exporter, load(source), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    before, after = model_of(kind, source), model_of(kind, folder)
    assert after.dtype == before.dtype == getattr(torch, dtype)
    assert torch.equal(outputs(before), outputs(after))
    assert len(set(before.state_dict()) ^ set(after.state_dict())) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt54", "bert"])
def test_stored_names_and_orientation_are_the_sources(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _, source = tiny.make(kind)
    folder = export(exporter, load(source), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt54"])
def test_shards_hold_the_same_and_the_index_counts_them(kind: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind)
    checkpoint = load(source)
    whole = export(exporter, checkpoint, tmp_path / "whole")
    cut = export(exporter, checkpoint, tmp_path / "cut", shard_bytes=60_000)
    shards = sorted(path.name for path in cut.glob("*.safetensors"))
    count = len(shards)
    assert count > 2 and shards == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.size_bytes for t in checkpoint.tensors.values())
    assert sorted(set(index["weight_map"].values())) == shards
    again = load(cut)
    assert set(again.tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(again.tensors[name].rows(0, tensor.row_count), tensor.rows(0, tensor.row_count))
    assert torch.equal(outputs(model_of(kind, whole)), outputs(model_of(kind, cut)))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    _, source = tiny.make("qwen3")
    first = export(exporter, load(source), tmp_path / "a", shard_bytes=60_000)
    second = export(exporter, load(source), tmp_path / "b", shard_bytes=60_000)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def with_dtype(checkpoint: Checkpoint, dtype: str, only: str = "") -> Checkpoint:
    tensors = {n: views.cast(t, dtype) if only in n else t for n, t in checkpoint.tensors.items()}
    return checkpoint.with_tensors(tensors)


def test_config_says_the_type_of_most_elements(tmp_path: Path) -> None:
    _, source = tiny.make("llama", dtype="bfloat16")
    half = export(exporter, with_dtype(load(source), "float16", "proj"), tmp_path / "half")
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    norms = export(exporter, with_dtype(load(source), "float32", "norm"), tmp_path / "norms")
    assert json.loads((norms / "config.json").read_text())["dtype"] == "bfloat16"


def test_gpt2_cast_is_still_stored_transposed(tmp_path: Path) -> None:
    _, source = tiny.make("gpt2")
    folder = export(exporter, with_dtype(load(source), "float16"), tmp_path / "out")
    wanted = model_of("gpt2", source).half().float()
    assert torch.equal(outputs(wanted), outputs(model_of("gpt2", folder, dtype=torch.float32)))


def test_side_files_are_kept(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    folder = export(exporter, load(source), tmp_path / "out")
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    text = "Hello wörld, 123 <|end_of_text|>"
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (source, folder))
    assert before(text)["input_ids"] == after(text)["input_ids"]
    configs = [json.loads((path / "generation_config.json").read_text()) for path in (source, folder)]
    assert configs[0] == configs[1]


def test_new_tokenizer_classes_become_the_one_both_versions_know(tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny.make("llama")[1], tmp_path / "in"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    tokenizer.save_pretrained(source)
    assert (
        json.loads((source / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    )
    folder = export(exporter, load(source), tmp_path / "out")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|x|>"] and "extra_special_tokens" not in settings
    again = transformers.AutoTokenizer.from_pretrained(folder)
    assert again("a<|x|>b")["input_ids"] == tokenizer("a<|x|>b")["input_ids"]


def test_a_lone_file_becomes_a_lone_file(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    folder = export(exporter, load(source / "model.safetensors"), tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_private_paths_do_not_leak(tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny.make("llama")[1], tmp_path / "in"))
    config = json.loads((source / "config.json").read_text()) | {"_name_or_path": "/home/somebody/secret"}
    (source / "config.json").write_text(json.dumps(config))
    folder = export(exporter, load(source), tmp_path / "out")
    assert "secret" not in (folder / "config.json").read_text()
