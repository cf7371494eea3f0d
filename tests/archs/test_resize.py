"""config.json in other sizes: what `sizes` reads back is what was asked for, and nothing else changes."""

import pytest
import tiny

from gpt54_convert import archs
from gpt54_convert.archs._resize import resized
from gpt54_convert.errors import UnsupportedError


def config_of(variant):
    return tiny.make(variant)[0].config.to_dict()


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_the_same_sizes_change_nothing(variant):
    config = config_of(variant)
    architecture = archs.for_config(config)
    sizes = architecture.sizes(config)
    stacks = {stack: range(sizes[stack]) for stack in ("layers", "encoder_layers") if stack in sizes}
    assert resized(architecture, config, sizes, stacks) == config


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_other_sizes_are_read_back(variant):
    config = config_of(variant)
    architecture = archs.for_config(config)
    old = architecture.sizes(config)
    own = "head_dim" in architecture.size_keys
    new = {
        **old,
        "heads": old["heads"] // 2 if own else old["heads"] - 1,
        "ffn": old["ffn"] - 3,
        "layers": old["layers"] - 1,
    }
    if "kv_heads" in old:
        new["kv_heads"] = 1 if "kv_heads" in architecture.size_keys else new["heads"]
    new["width"] = old["width"] - 16 if own else new["heads"] * old["head_dim"]
    found = resized(architecture, config, new, {"layers": range(old["layers"] - 1)})
    assert architecture.sizes(found) == new
    listed = found.get("layer_types")
    assert listed is None or len(listed) == new["layers"]
    assert config == config_of(variant), "the given config must not change"


@pytest.mark.parametrize("variant", ["gpt2", "bert"])
def test_sizes_that_cannot_be_said_are_refused(variant):
    config = config_of(variant)
    architecture = archs.for_config(config)
    sizes = architecture.sizes(config)
    with pytest.raises(UnsupportedError, match="heads × head_dim = width"):
        resized(architecture, config, {**sizes, "width": sizes["width"] // 2}, {})


def test_every_alternative_spelling_that_is_there_is_written():
    config = {
        "model_type": "gpt2",
        "n_embd": 48,
        "hidden_size": 48,
        "n_head": 3,
        "n_layer": 2,
        "vocab_size": 9,
    }
    architecture = archs.by_name("gpt2")
    sizes = {**architecture.sizes(config), "width": 32, "heads": 2}
    found = resized(architecture, config, sizes, {})
    assert (found["n_embd"], found["hidden_size"], found["n_head"], found["n_inner"]) == (32, 32, 2, 192)
