"""Every table against transformers (names and shapes) and against gguf's own map of names."""

import numpy as np
import pytest
import tiny
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap

from gpt54_convert import archs
from gpt54_convert.archs import _metadata, _rope
from gpt54_convert.core import discover
from gpt54_convert.errors import InputError, UnsupportedError

NAMES = archs.names()
ROLES = {
    "embed",
    "embed.position",
    "embed.type",
    "head",
    "pooler",
    *(f"attn.{part}" for part in ("q", "k", "v", "qkv", "out", "rel_bias")),
    *(f"cross.{part}" for part in ("q", "k", "v", "out")),
    *(f"ffn.{part}" for part in ("gate", "up", "down")),
    *(f"norm.{p}" for p in ("attn", "ffn", "cross", "q", "k", "post_attn", "post_ffn", "final", "embed")),
}


def config_of(variant):
    model, _ = tiny.make(variant)
    config = model.config.to_dict()
    if "gpt54" in variant:
        config["tie_word_embeddings"] = "tied" in variant
    return config


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant):
    """Both ways: the state dict has nothing but what the table expects, and the table nothing else."""
    model, _ = tiny.make(variant)
    config = config_of(variant)
    architecture = archs.for_config(config)
    sizes = architecture.sizes(config)
    expected = architecture.expected(sizes)
    found = {}
    for name, tensor in model.state_dict().items():
        canonical = architecture.canonical(name)
        if canonical is not None and not canonical.startswith("cls."):
            shape = tuple(tensor.shape)
            match = architecture.match(canonical)
            found[canonical] = shape[::-1] if match.weight.conv1d and not match.is_bias else shape
    assert found.items() <= {name: match.shape(sizes) for name, match in expected.items()}.items()
    missing = set(expected) - set(found)
    assert all(expected[name].weight.optional or expected[name].weight.bias == "maybe" for name in missing)


@pytest.mark.parametrize("name", NAMES)
def test_gguf_names_are_those_of_the_gguf_package(name):
    architecture = archs.by_name(name)
    if not architecture.gguf:
        pytest.skip("GGUF has no such architecture")
    kind = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture.gguf)
    assert isinstance(kind, MODEL_ARCH)
    table = TensorNameMap(kind, 8)
    variants = [v for v in tiny.VARIANTS if v.split("-")[0] == name]
    for variant in variants:
        for hf, match in architecture.expected(architecture.sizes(config_of(variant))).items():
            if match.gguf:
                key = hf.removeprefix("bert.")
                assert table.get_name(key, try_suffixes=(".weight", ".bias")) == match.gguf


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_consistent(name):
    architecture = archs.by_name(name)
    assert architecture.name == name
    assert {weight.role.removeprefix("enc.") for weight in architecture.weights} <= ROLES
    assert any(role.startswith("enc.") for role in {w.role for w in architecture.weights}) == (
        architecture.kind == "encoder-decoder"
    )
    variant = next(v for v in tiny.VARIANTS if v.split("-")[0] == name)
    sizes = architecture.sizes(config_of(variant))
    expected = architecture.expected(sizes)
    for canonical, match in expected.items():
        assert architecture.match(canonical) == match
        assert architecture.canonical(canonical) == canonical
        assert match.weight.rope in ("", *sizes)
    names = [match.gguf for match in expected.values() if match.gguf]
    assert len(names) == len(set(names))
    assert architecture.gguf_names(sizes).keys() == set(names)


def test_every_model_type_has_one_architecture():
    types = [model_type for name in NAMES for model_type in archs.by_name(name).model_types]
    assert len(types) == len(set(types))
    gguf = [archs.by_name(name).gguf for name in NAMES if archs.by_name(name).gguf]
    assert len(gguf) == len(set(gguf))


@pytest.mark.parametrize(
    ("architecture", "found", "canonical"),
    [
        ("gpt2", "h.3.attn.c_attn.weight", "transformer.h.3.attn.c_attn.weight"),
        ("gpt2", "h.3.attn.bias", None),
        ("gpt54", "encoder.embed_tokens.weight", "shared.weight"),
        ("gpt54", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None),
        ("bert", "embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert", "bert.embeddings.position_ids", None),
        ("distilbert", "transformer.layer.1.ffn.lin1.bias", "distilbert.transformer.layer.1.ffn.lin1.bias"),
        ("distilbert", "vocab_transform.weight", "vocab_transform.weight"),
        ("bert", "cls.predictions.bias", "cls.predictions.bias"),
        ("llama", "layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq", None),
        ("gemma3", "language_model.model.norm.weight", "model.norm.weight"),
    ],
)
def test_canonical_names(architecture, found, canonical):
    assert archs.by_name(architecture).canonical(found) == canonical


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("qwen3", {"attention_bias": True}),
        ("gemma3", {"attn_logit_softcapping": 50.0}),
        ("gemma3", {"query_pre_attn_scalar": 48}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("gpt54", {"feed_forward_proj": "gated-silu"}),
        ("gpt54", {"relative_attention_max_distance": 64}),
        ("gpt54", {"num_layers": 1, "num_decoder_layers": 2}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama-yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}}),
        ("qwen2", {"head_dim": 24}),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(variant, changes):
    config = {**config_of(variant), **changes}
    architecture = archs.for_config(config)
    with pytest.raises(UnsupportedError, match=r"config\.json|llama\.cpp"):
        architecture.checks(config)
        _metadata.to_gguf(architecture, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mistral", "sliding_window": 16, "max_position_embeddings": 64}, "beyond 16"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, ""),
    ],
)
def test_an_ignored_window_is_said(config, words):
    config = {"max_position_embeddings": 64, **config}
    assert words in archs.for_config(config).caveats(config)[0]
    assert not archs.for_config(config).caveats({**config, "sliding_window": 64})


def test_llama3_scaling_is_recognised_from_its_tensor():
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {"rope_theta": 500000.0, "rope_scaling": rope, "max_position_embeddings": 131072}
    factors = _rope.frequency_factors(config, 64)[_rope.FREQUENCIES]
    keys = {"rope.freq_base": 500000.0, "rope_freqs": factors}
    assert _rope.from_gguf(keys, 64) == {"rope_theta": 500000.0, "rope_scaling": rope}
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        _rope.from_gguf({**keys, "rope_freqs": np.linspace(1, 9, 32)}, 64)


def test_keys_that_make_no_sense_are_input_errors():
    architecture = archs.by_name("llama")
    shapes = {"token_embd.weight": (8, 4)}
    for keys in ({}, {"llama.block_count": "two"}, {"llama.block_count": [1, 2]}, {"llama.block_count": -1}):
        with pytest.raises(InputError, match="GGUF key"):
            _metadata.to_config(architecture, keys, shapes)


def test_one_file_adds_an_architecture(tmp_path, monkeypatch):
    (tmp_path / "fresh.py").write_text(
        "from gpt54_convert.archs import _decoder\n"
        "from gpt54_convert.archs._table import Architecture\n"
        "ARCHITECTURE = Architecture(\n"
        "    name='fresh', model_types=('fresh',), model_class='FreshForCausalLM', gguf='fresh',\n"
        "    kind='decoder', sizes=_decoder.sizes,\n"
        "    weights=(_decoder.EMBEDDING, *_decoder.attention(), *_decoder.feed_forward()),\n"
        "    keys=_decoder.KEYS)\n"
    )
    monkeypatch.setattr(archs, "__path__", [*archs.__path__, str(tmp_path)])
    discover.names.cache_clear()
    try:
        assert archs.for_config({"model_type": "fresh"}).gguf == "fresh"
        assert archs.by_gguf("fresh").name == "fresh"
    finally:
        discover.names.cache_clear()
