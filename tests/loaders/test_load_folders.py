"""Model folders of safetensors and torch files become checkpoints, or one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import ConvertError, InputError, UnsupportedError
from gpt54_convert.loaders import load

ALL = ("llama", "mistral", "qwen2-tied", "qwen3", "gemma3", "gpt2", "bert", "bert-mlm", "gpt54", "gpt54-tied")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama's folder, to be spoiled."""
    return Path(shutil.copytree(tiny.make("llama")[1], tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: tensor.rows(0, tensor.row_count) for name, tensor in checkpoint.tensors.items()}


def same(first: Checkpoint, second: Checkpoint) -> bool:
    one, two = values(first), values(second)
    return sorted(one) == sorted(two) and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ALL)
def test_every_architecture_loads_with_canonical_names(kind: str) -> None:
    model, path = tiny.make(kind)
    checkpoint = load(path)
    assert checkpoint.architecture == archs.for_config(checkpoint.config).name
    state = {
        archs.by_name(checkpoint.architecture).canonical(name): t for name, t in model.state_dict().items()
    }
    for name, tensor in checkpoint.tensors.items():
        match = archs.by_name(checkpoint.architecture).match(name)
        wanted = state[name].numpy()
        if match and match.weight.conv1d and not match.is_bias:
            wanted = wanted.T
        assert tensor.shape == wanted.shape and np.array_equal(tensor.rows(0, tensor.row_count), wanted)
    assert "tokenizer.json" in checkpoint.tokenizer and checkpoint.source.container == "safetensors"
    assert {file.name for file in checkpoint.source.files} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "gpt54", "gpt54-tied", "bert-mlm"])
def test_torch_files_give_the_same_checkpoint(kind: str, tmp_path: Path) -> None:
    model, path = tiny.make(kind)
    shutil.copytree(path, tmp_path / "bin", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")  # holds tied weights twice
    assert same(load(tmp_path / "bin"), load(path))
    state = model.state_dict()
    index = {}
    for part in (0, 1):
        name = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        held = dict(list(state.items())[part::2])
        torch.save(held, tmp_path / "bin" / name)
        index |= dict.fromkeys(held, name)
    (tmp_path / "bin" / "pytorch_model.bin").unlink()
    (tmp_path / "bin" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(load(tmp_path / "bin"), load(path))


def test_shards_give_the_same_checkpoint(tmp_path: Path) -> None:
    model, path = tiny.make("llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert same(load(tmp_path / "shards"), load(path))


def test_safetensors_come_before_torch(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert load(folder).source.container == "safetensors"


def test_lone_files(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, tmp_path / "x.pt")
    for path in (folder / "model.safetensors", tmp_path / "x.pt"):
        checkpoint = load(path)
        assert (
            checkpoint.architecture is None
            and checkpoint.config == {}
            and set(checkpoint.tensors) == set(weights)
        )


def test_an_undescribed_architecture_loads_by_names(folder: Path) -> None:
    change_config(folder, model_type="unheard-of")
    checkpoint = load(folder)
    assert checkpoint.architecture is None
    assert set(checkpoint.tensors) == set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_multimodal_one(prefix: str, tmp_path: Path) -> None:
    """Gemma 3 as published since 4B: names of transformers 4 and 5, the config nested."""
    source = tiny.make("gemma3")[1]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    wrapped = {prefix + name.removeprefix("model."): values for name, values in weights.items()}
    wrapped["vision_tower.layers.0.mlp.fc1.weight"] = torch.ones(4, 4)
    save_file(wrapped, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    whole |= {"text_config": config, "vision_config": {}, "eos_token_id": [1, 106]}
    (folder / "config.json").write_text(json.dumps(whole))
    found, expected = load(folder), load(source)
    assert found.architecture == "gemma3" and "vision_tower (1 tensors)" in found.notes[0]
    assert values(found).keys() == values(expected).keys()
    assert all(np.array_equal(rows, values(expected)[name]) for name, rows in values(found).items())
    assert found.config == dict(expected.config) and not expected.notes


def test_a_nested_config_without_sizes_is_read_by_names(folder: Path) -> None:
    change_config(folder, model_type="llava", text_config={"model_type": "llama"})
    assert load(folder).architecture is None


def test_a_folder_of_models_names_them(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "one")
    with pytest.raises(InputError, match=r"folder of models.*one"):
        load(tmp_path)


def test_nothing_there_suggests_what_is(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with pytest.raises(InputError, match=r"did you mean .*my-model"):
        load(tmp_path / "my-modle")
    for path in (tmp_path / "meta-llama", "meta-llama/Llama-3"):
        with pytest.raises(InputError, match="download it first"):
            load(path)
    with pytest.raises(
        InputError, match=r"is no checkpoint of a known kind; looked for .*safetensors.*pytorch_model"
    ):
        load(tmp_path / "my-model")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match="known kind"):
        load(tmp_path / "x.txt")


# --- indexes


def sharded(folder: Path) -> dict[str, str]:
    """Cut the folder's weights into two shards; returns the index's weight_map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for part in (0, 1):
        name = f"model-{part + 1:05d}-of-00002.safetensors"
        held = dict(list(weights.items())[part::2])
        save_file(held, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(held, name)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_a_sound_index(folder: Path) -> None:
    whole = values(load(folder))
    write_index(folder, sharded(folder))
    assert {name: tuple(array.shape) for name, array in whole.items()} == {
        name: tensor.shape for name, tensor in load(folder).tensors.items()
    }


ELSEWHERE = ("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "x\0y")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_may_name_plain_files_only(folder: Path, name: str) -> None:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {next(iter(weight_map)): name})
    with pytest.raises(InputError, match="plain names"):
        load(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": ["b"]}, "text"])
def test_an_index_must_be_a_map(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    with pytest.raises(InputError, match="weight_map"):
        load(folder)


def test_index_and_files_must_agree(folder: Path) -> None:
    weight_map = sharded(folder)
    first, *_ = weight_map
    other = next(name for name in weight_map.values() if name != weight_map[first])
    for wrong, message in (
        (weight_map | {first: other}, "index places tensor"),
        (weight_map | {"ghost": other}, "no file holds it"),
        ({name: file for name, file in weight_map.items() if name != first}, "which the index lacks"),
        (weight_map | {"ghost": "model-00003-of-00003.safetensors"}, "missing"),
    ):
        write_index(folder, wrong)
        with pytest.raises(InputError, match=message):
            load(folder)


def test_shards_left_over_or_double(folder: Path) -> None:
    weight_map = sharded(folder)
    write_index(folder, weight_map)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")
    with pytest.raises(InputError, match="left-over"):
        load(folder)
    (folder / "model-00001-of-00003.safetensors").unlink()
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match="is also in"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"2 \.safetensors files but no"):
        load(folder)


# --- links and other traps in the folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
)
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link out of the folder"):
        load(folder)


def test_links_within_the_folder_and_to_the_caches_blobs_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert load(folder).tensors
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "123").mkdir(parents=True)
    for file in folder.iterdir():
        if not file.is_symlink():
            name = "model.safetensors" if file.name == "weights" else file.name
            file.rename(cache / "blobs" / file.name)
            (cache / "snapshots" / "123" / name).symlink_to(f"../../blobs/{file.name}")
    assert load(cache / "snapshots" / "123").tensors


@pytest.mark.parametrize("target", ["model.safetensors", "nowhere"])
def test_links_to_themselves_or_nowhere(folder: Path, target: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    with pytest.raises(InputError, match=r"leads nowhere|cannot be read"):
        load(folder)


def test_a_pipe_does_not_block(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(InputError, match="regular file"):
        load(folder)


def test_huge_side_files_are_not_read(folder: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        os.truncate(folder / name, 1 << 40)
        with pytest.raises(InputError, match="at most"):
            load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"3"])
def test_damaged_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        load(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter"):
        load(folder)


@pytest.mark.parametrize("size", [10**30, -1, "64", 2.5, None, True, [], 10**9])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_insane_sizes(folder: Path, key: str, size: Any) -> None:
    change_config(folder, **{key: size})
    with pytest.raises(ConvertError):
        load(folder)


# --- tensors that do not fit


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_wrong_shape_names_tensor_and_both_shapes(folder: Path) -> None:
    change_config(folder, vocab_size=341)
    with pytest.raises(InputError, match=r"weight: has shape \[340, 64\].* demands \[341, 64\]"):
        load(folder)


def test_missing_and_stray_tensors(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(InputError, match=r"model\.norm\.weight: missing"):
        load(folder)
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"layers\.1\..* no such layer"):
        load(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}))
    with pytest.raises(InputError, match="float type"):
        load(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", None, 3])
def test_other_quantizations_are_refused(folder: Path, method: Any) -> None:
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedError, match=f"quantized with {method} cannot be read"):
        load(folder)


# --- tying


def test_a_repeated_head_is_dropped_and_a_differing_one_kept(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.make("llama-tied")[1], tmp_path / "m"))
    assert "lm_head.weight" not in load(folder).tensors
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in load(folder).tensors
    rewrite(folder, lambda w: w["lm_head.weight"].add_(1))
    checkpoint = load(folder)
    assert "lm_head.weight" in checkpoint.tensors and checkpoint.config["tie_word_embeddings"] is False


def test_an_untied_head_must_be_there(folder: Path) -> None:
    rewrite(folder, lambda w: w.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"lm_head\.weight: missing.*tie_word_embeddings"):
        load(folder)


def test_t5_is_said_in_the_one_way_that_both_readers_understand(tmp_path: Path) -> None:
    tied = Path(shutil.copytree(tiny.make("gpt54-tied")[1], tmp_path / "tied"))
    own = Path(shutil.copytree(tiny.make("gpt54")[1], tmp_path / "own"))
    assert load(tied).config["tie_word_embeddings"] is True and "lm_head.weight" not in load(tied).tensors
    assert load(own).config["tie_word_embeddings"] is False and "lm_head.weight" in load(own).tensors
    # transformers 5 saves a tied but unscaled T5 so; only a head that repeats the embedding says the same
    change_config(tied, tie_word_embeddings=True, scale_decoder_outputs=False)
    unscaled = load(tied)
    assert unscaled.config["tie_word_embeddings"] is False and "scale_decoder_outputs" not in unscaled.config
    assert np.array_equal(*(unscaled.tensors[n].rows(0, 9) for n in ("lm_head.weight", "shared.weight")))
    change_config(own, tie_word_embeddings=True, scale_decoder_outputs=None)
    with pytest.raises(InputError, match="differs from the embedding"):
        load(own)


def test_a_t5_that_stores_its_embedding_thrice(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.make("gpt54")[1], tmp_path / "m"))
    rewrite(
        folder,
        lambda w: w.update(
            {f"{s}.embed_tokens.weight": w["shared.weight"].clone() for s in ("encoder", "decoder")}
        ),
    )
    assert same(load(folder), load(tiny.make("gpt54")[1]))
    rewrite(folder, lambda w: w["encoder.embed_tokens.weight"].add_(1))
    with pytest.raises(InputError, match="other values"):
        load(folder)
