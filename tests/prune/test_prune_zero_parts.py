"""Removing what is zero changes no answer, removing nothing changes no byte: for every architecture."""

import json
import re

import numpy as np
import pump
import pytest
import tiny
from safetensors.numpy import load_file
from surgery import DOWN, OUT, Surgery, answers

from gpt54_convert import archs, pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.exporters import safetensors as folder_exporter
from gpt54_convert.loaders import load
from gpt54_convert.prune.cut import Selection, cut
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Recipe

VARIANTS = [
    "llama",
    "llama-tied",
    "llama-bias",
    "qwen2",
    "qwen3",
    "gemma3",
    "gpt2",
    "bert",
    "gpt54",
    "gpt54-tied",
]
DEEPER = {"gpt2": {"n_layer": 4}, "gpt54": {"num_decoder_layers": 4, "num_layers": 4}}


def pruned(source, output, **options):
    options = {"importance": "weights", "layer_choice": "last", **options}
    export = Export(output=output, to=("safetensors",))
    pipeline.run(Recipe(source, Convert(), export, (Prune(**options),)), Report())
    return output / "safetensors"


def surgery(variant, **changes):
    _, folder = tiny.make(variant, **changes)
    return Surgery(folder)


def close(first, second):
    assert first.shape == second.shape
    assert np.abs(first - second).max() <= 2e-4 * max(1.0, np.abs(first).max())


def head_sizes(config):
    heads = config.get("num_attention_heads") or config.get("n_head") or config["num_heads"]
    width = config.get("hidden_size") or config.get("n_embd") or config["d_model"]
    return heads, config.get("head_dim") or config.get("d_kv") or width // heads


@pytest.mark.parametrize("variant", [*VARIANTS, "mistral", "bert-mlm"])
def test_the_same_size_is_the_identity(variant, tmp_path):
    _, folder = tiny.make(variant, dtype="bfloat16")
    plain = tmp_path / "plain"
    pipeline.run(Recipe(folder, Convert(), Export(output=plain, to=("safetensors",))), Report())
    small = pruned(folder, tmp_path / "pruned", keep_params=1.0)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        if (plain / "safetensors" / name).exists():
            assert (small / name).read_bytes() == (plain / "safetensors" / name).read_bytes(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_that_adds_nothing(variant, tmp_path):
    """In every stack; with `last`, the layers that go are the last ones."""
    changes = DEEPER.get(variant.split("-")[0], {"num_hidden_layers": 7 if variant == "gemma3" else 4})
    model = surgery(variant, **changes)
    depth = next(iter(changes.values()))
    if variant == "bert":
        model.plain_norms()
    for layer in (depth - 1, depth - 2):
        model.zero_layer(layer)
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", layers=depth - 2)
    assert len(load_file(after / "model.safetensors")) < len(model.tensors)
    close(answers(after), answers(before))


def rows_of(heads, size):
    return np.concatenate([np.arange(head * size, (head + 1) * size) for head in heads])


@pytest.mark.parametrize("whole_groups", [True, False], ids=["groups", "halves"])
@pytest.mark.parametrize("variant", ["llama", "llama-tied", "llama-bias", "qwen2", "qwen3", "gemma3"])
def test_grouped_heads_that_add_nothing(variant, whole_groups, tmp_path):
    """Two of four KV heads with all that share them, or one of the two heads of each."""
    model = surgery(variant, num_attention_heads=8, num_key_value_heads=4)
    _, size = head_sizes(model.config)

    def gone(name):
        layer = int(re.search(r"\.(\d+)\.", name)[1])
        if whole_groups:
            return rows_of([4 * (layer % 2) + each for each in range(4)], size)
        return rows_of([2 * group + (group + layer) % 2 for group in range(4)], size)

    model.zero_inputs(OUT, gone)
    before = model.save(tmp_path / "zeroed")
    new = {"kv_heads": 2} if whole_groups else {"heads": 4, "kv_heads": 4}
    after = pruned(before, tmp_path / "out", **new)
    close(answers(after), answers(before))


@pytest.mark.parametrize("variant", ["gpt54", "gpt54-tied"])
def test_heads_that_share_relative_positions(variant, tmp_path):
    """They go alike in all layers of a stack; those of cross-attention may differ.

    The heads of GPT-2 and BERT make up their width, and are tested with it.
    """
    model = surgery(variant)
    _, size = head_sizes(model.config)
    model.zero_inputs(r"SelfAttention\.o", lambda name: rows_of([1 if "encoder" in name else 2], size))
    model.zero_inputs(r"EncDecAttention\.o", lambda name: rows_of([int(re.search(r"(\d)", name)[1])], size))
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", heads=2)
    close(answers(after), answers(before))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ffn_channels_that_add_nothing(variant, tmp_path):
    model = surgery(variant)
    ffn = model.matrix(next(n for n in model.names(DOWN) if n.endswith("weight"))).shape[1]
    model.zero_inputs(DOWN, lambda name: np.arange(int(re.search(r"\.(\d+)\.", name)[1]) % 3, ffn, 3))
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", ffn=ffn * 2 // 3 + (ffn % 3 > 0))
    close(answers(after), answers(before))


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_that_are_always_zero(variant, tmp_path):
    """Norms, T5's scaling of the output and Gemma's of the embedding all depend on the width."""
    model = surgery(variant)
    _, size = head_sizes(model.config)
    narrow = variant in ("gpt2", "bert")
    gone = np.random.default_rng(3).choice(model.width, size if narrow else 16, replace=False)
    kept = model.zero_channels(gone)
    if narrow:
        model.zero_inputs(OUT, lambda name: np.arange(size))
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", width=len(kept))
    wanted = answers(before)
    close(answers(after), wanted[:, kept] if variant == "bert" else wanted)


@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_window_layers_stay_what_they_were(variant, tmp_path):
    """Also where config.json has only the rule `max_window_layers`."""
    model = surgery(
        variant, num_hidden_layers=5, use_sliding_window=True, sliding_window=8, max_window_layers=3
    )
    model.config.pop("layer_types")
    for layer in (1, 3):
        model.zero_layer(layer)
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", layers=3, layer_choice="even")  # 0, 2, 4
    config = json.loads((after / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert config["max_window_layers"] == 2
    close(answers(after), answers(before))


def test_gemmas_pattern_follows_its_layers(tmp_path):
    """Layer 5, the only one that sees everything, goes: no rule with a period says that."""
    model = surgery("gemma3", num_hidden_layers=7)
    model.config.pop("layer_types")
    for layer in (1, 3, 5):
        model.zero_layer(layer)
    before = model.save(tmp_path / "zeroed")
    after = pruned(before, tmp_path / "out", layers=4, layer_choice="even")  # 0, 2, 4, 6
    config = json.loads((after / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention"] * 4
    close(answers(after), answers(before))


def test_relative_positions_move_when_the_first_layer_goes(tmp_path):
    """They are stored in layer 0 and used by all; also the decoder may lose layers that the encoder keeps."""
    model = surgery("gpt54", num_layers=3, num_decoder_layers=4)
    for layer in (0, 2):
        model.zero_layer(layer, "decoder")
    before = load(model.save(tmp_path / "zeroed"))
    sizes = {**archs.by_name("gpt54").sizes(before.config), "layers": 2}
    after = cut(before, Selection({"layers": [1, 3]}), sizes)
    pump.export(folder_exporter, after, tmp_path / "out")
    assert after.config["num_layers"] == 3
    assert after.config["num_decoder_layers"] == 2
    close(answers(tmp_path / "out"), answers(tmp_path / "zeroed"))
