"""Schemes and assignment: roles to grids, fallbacks, overrides; llama.cpp's own quantizer as the oracle."""

import numpy as np
import pytest

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.assign import assign, parse_keep, place
from gpt54_convert.quantize.grids import GRIDS, grid
from gpt54_convert.quantize.schemes import BITS, FINE_FALLBACK, SCHEMES, SUPER_FALLBACK, Place, scheme


def model(tmp_path, layers=2, width=256, ffn=512, head=True, dtype="bfloat16", kv_heads=2):
    """A llama-shaped checkpoint whose tensors are declared and never read."""

    def declared(name, *shape):
        return LazyTensor(name, shape, dtype, lambda start, stop: np.zeros((stop - start, *shape[1:])))

    kv_width = width // 4 * kv_heads
    shapes = {"model.embed_tokens.weight": (512, width), "model.norm.weight": (width,)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        shapes[stem + "input_layernorm.weight"] = (width,)
        shapes[stem + "self_attn.q_proj.weight"] = (width, width)
        shapes[stem + "self_attn.k_proj.weight"] = (kv_width, width)
        shapes[stem + "self_attn.v_proj.weight"] = (kv_width, width)
        shapes[stem + "self_attn.o_proj.weight"] = (width, width)
        shapes[stem + "mlp.gate_proj.weight"] = (ffn, width)
        shapes[stem + "mlp.down_proj.weight"] = (width, ffn)
    if head:
        shapes["lm_head.weight"] = (512, width)
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "vocab_size": 512,
    }
    tensors = {name: declared(name, *shape) for name, shape in shapes.items()}
    return Checkpoint(tensors, config, Source(tmp_path, "safetensors"), "llama")


def grids_of(checkpoint, name, keep=(), refuses=lambda role, tensor, grid: None):
    found = assign(checkpoint, scheme(name), parse_keep(keep), refuses)
    return {key: value.grid.name for key, value in found.items()}


def test_int4_keeps_norms_and_gives_the_head_8_bits(tmp_path):
    found = grids_of(model(tmp_path), "int4")
    assert found["model.layers.0.mlp.down_proj.weight"] == "int4-g32"
    assert found["model.embed_tokens.weight"] == "int4-g32"
    assert found["lm_head.weight"] == "int8-g32"
    assert found["model.norm.weight"] == found["model.layers.1.input_layernorm.weight"] == "bfloat16"


def test_a_tied_embedding_counts_as_head(tmp_path):
    checkpoint = model(tmp_path, head=False)
    assert place(checkpoint, "model.embed_tokens.weight").role == "head"
    assert grids_of(checkpoint, "int4")["model.embed_tokens.weight"] == "int8-g32"


def test_rows_that_do_not_divide_fall_back_and_say_so(tmp_path):
    found = assign(model(tmp_path, width=192), scheme("q4_k_m"), {}, lambda *_: None)
    q = found["model.layers.0.self_attn.q_proj.weight"]
    assert q.grid.name == "q5_0"
    assert "192" in q.reason and "256" in q.reason
    assert found["model.layers.0.mlp.down_proj.weight"].grid.name in ("q4_k", "q6_k")  # rows of 512 fit


def test_rows_that_fit_nothing_become_16_bit_floats(tmp_path):
    found = grids_of(model(tmp_path, width=200), "q4_k_m")
    assert found["model.layers.0.self_attn.q_proj.weight"] == "bfloat16"
    found = grids_of(model(tmp_path, width=200, dtype="float32"), "int4")
    assert found["model.layers.0.self_attn.q_proj.weight"] == "float16"


def test_a_container_that_refuses_gets_floats(tmp_path):
    def refuses(role, tensor, grid):
        return "no embeddings here" if role == "embed" else None

    found = assign(model(tmp_path), scheme("int4"), {}, refuses)
    assert found["model.embed_tokens.weight"].grid.name == "bfloat16"
    assert "no embeddings here" in found["model.embed_tokens.weight"].reason
    assert found["lm_head.weight"].grid.name == "int8-g32"


def test_keep_overrides_by_role(tmp_path):
    found = grids_of(model(tmp_path), "int4", ["attn.*=q6_k", "head=float16", "norm.final=float32"])
    assert found["model.layers.1.self_attn.v_proj.weight"] == "q6_k"
    assert found["lm_head.weight"] == "float16"
    assert found["model.norm.weight"] == "float32"
    assert found["model.layers.0.mlp.gate_proj.weight"] == "int4-g32"


def test_keep_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such role; it has attn"):
        grids_of(model(tmp_path), "int4", ["cross.q=q6_k"])
    with pytest.raises(UsageError, match="ROLE=GRID"):
        parse_keep(["head"])
    with pytest.raises(UsageError, match="unknown grid"):
        parse_keep(["head=int9"])


def test_unknown_scheme_names_the_known():
    with pytest.raises(UsageError, match="q4_k_m"):
        scheme("q4_k_xxl")


@pytest.mark.parametrize("name", [*SCHEMES, "int3-g64-asym", "q5_0", "mxfp4"])
def test_every_scheme_speaks_of_grids_that_exist(name):
    chosen = scheme(name)
    for layer in range(32):
        for role in ("attn.v", "attn.q", "ffn.down", "head", "embed", "attn.out", "cross.v", "attn.qkv"):
            grid(chosen.grid_for(Place(role, layer, 32, 4)))


def test_every_bits_value_has_a_scheme_and_fallbacks_need_no_superblocks():
    assert {name for names in BITS.values() for name in names} <= set(SCHEMES)
    for fallback in (SUPER_FALLBACK, FINE_FALLBACK):
        assert all(GRIDS[name].block == 32 for name in fallback.values())


def test_mix4_spends_its_bits_where_keys_are_shared():
    chosen = scheme("mix4")
    shared, own = (Place("attn.v", 3, 8, ratio) for ratio in (3, 1))
    assert (chosen.grid_for(shared), chosen.grid_for(own)) == ("q8_0", "q5_k")
    assert chosen.grid_for(Place("attn.k", 3, 8, 3)) == "q5_k"
    assert chosen.grid_for(Place("attn.k", 3, 8, 1)) == chosen.grid_for(Place("ffn.up", 3, 8)) == "q4_k"
    assert chosen.fallback["q6_k"] == "q5_1"


def test_an_undescribed_architecture_goes_by_names(tmp_path):
    def declared(name, *shape):
        return LazyTensor(name, shape, "float32", lambda start, stop: np.zeros((stop - start, *shape[1:])))

    names = {"tok_embeddings.weight": (64, 64), "h.0.fc.weight": (64, 64), "h.0.norm.weight": (64,)}
    tensors = {name: declared(name, *shape) for name, shape in names.items()}
    found = grids_of(Checkpoint(tensors, {}, Source(tmp_path, "safetensors")), "int8")
    assert found["h.0.fc.weight"] == "int8-g32"
    assert found["h.0.norm.weight"] == "float32"


# scheme -> llama.cpp's LLAMA_FTYPE_MOSTLY_… (llama.h)
FTYPES = {
    "q2_k": 10,
    "q3_k_m": 12,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "q8_0": 7,
    "iq4_xs": 30,
}
SHAPES = {
    "plain": {"num_hidden_layers": 9, "hidden_size": 256, "intermediate_size": 512},
    "grouped": {"num_hidden_layers": 17, "num_attention_heads": 8, "num_key_value_heads": 2},
    "tied": {"num_hidden_layers": 3, "tie_word_embeddings": True},
    "narrow": {"num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 256},
}


@pytest.mark.llama_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FTYPES)
def test_mixes_equal_llama_cpp_tensor_by_tensor(name, shape, tmp_path):
    """The very types that llama.cpp's quantizer gives each tensor of the same float GGUF."""
    import gguf
    import llama_cpp
    import tiny

    from gpt54_convert import pipeline
    from gpt54_convert.core.report import Report
    from gpt54_convert.recipe import Convert, Export, Quantize, Recipe

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    _, folder = tiny.make("llama", **{**sizes, "head_dim": 64, **SHAPES[shape]})

    def export(step, output):
        (artifact,) = pipeline.run(Recipe(folder, step, Export(output=output, to=("gguf",))), Report())
        return next(path for path in artifact.files if path.suffix == ".gguf")

    source = export(Convert("float32"), tmp_path / "float")
    ours = export(Quantize(scheme=name, method="rtn"), tmp_path / "ours")
    theirs = tmp_path / "theirs.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES[name], 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), params) == 0

    def types(path):
        return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}

    assert types(ours) == types(theirs)
