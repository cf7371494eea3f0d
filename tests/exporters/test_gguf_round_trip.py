"""Model folder → GGUF → checkpoint: the same tensors, config and tokenizer, and the same logits."""

import json

import numpy as np
import pytest
import tiny
from gguf import GGUFReader
from pump import pump

from gpt54_convert import archs, loaders
from gpt54_convert.archs import _metadata
from gpt54_convert.exporters import gguf, safetensors
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.formats import gguf as gguf_format
from gpt54_convert.formats import gguf_layout
from gpt54_convert.formats.safetensors import Writer


def export(checkpoint, folder, exporter=gguf, **options):
    folder.mkdir(parents=True, exist_ok=True)
    sink = exporter.open_sink(checkpoint, folder, SinkOptions(**{"name": "tiny", "label": "keep", **options}))
    files = pump(sink)
    assert sum(file.stat().st_size for file in files) == sink.size_bytes
    return files


def values(tensor):
    return tensor.float_rows(0, tensor.row_count).reshape(tensor.shape)


def without_keys(source, target, *prefixes):
    """The same file without some keys: as another converter would have written it."""
    found = gguf_format.read(source)
    keys = [
        (name, found.types[name], value)
        for name, value in found.keys.items()
        if not name.startswith(prefixes)
    ]
    tensors = loaders.gguf._gguf_tensors.merged([found])
    views = [(tensors[name], stored.type) for name, stored in found.tensors.items()]
    writer = Writer(target, gguf_layout.plan(keys, views))
    for view, _ in views:
        writer.put(view.name, 0, view.rows(0, view.row_count))
    writer.close()
    return target


def vocabulary(checkpoint):
    """Tokens with their ids, or with their scores as float32 holds them."""
    vocab = json.loads(checkpoint.tokenizer["tokenizer.json"])["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else [(token, np.float32(score)) for token, score in vocab]


def left_out(name):
    return name.startswith(("cls.", "bert.pooler."))


@pytest.mark.parametrize("variant", tiny.GGUF)
def test_round_trip_is_exact(variant, tmp_path):
    _, folder = tiny.make(variant)
    original = loaders.load(folder)
    back = loaders.load(export(original, tmp_path)[0])
    assert back.architecture == original.architecture
    assert set(back.tensors) == {name for name in original.tensors if not left_out(name)}
    table = archs.by_name(original.architecture)
    for name, tensor in back.tensors.items():
        expected = values(original.tensors[name])
        if table.match(name).weight.plus_one:  # float32 rounds w + 1; nothing can bring the lost bits back
            expected = (expected + np.float32(1)) - np.float32(1)
        assert np.array_equal(values(tensor), expected), name
    assert {**back.config, "dtype": None} == {**original.config, "dtype": None}
    assert back.generation_config == original.generation_config
    assert vocabulary(back) == vocabulary(original)


@pytest.mark.parametrize("variant", tiny.GGUF)
def test_the_gguf_package_reads_the_same_bytes(variant, tmp_path):
    _, folder = tiny.make(variant)
    original = loaders.load(folder)
    sink = gguf.open_sink(original, tmp_path, SinkOptions("tiny", "keep"))
    views = {view.name: view for view in sink.views()}
    reader = GGUFReader(pump(sink)[0])
    assert [tensor.name for tensor in reader.tensors] == list(views)
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, views[tensor.name].rows(0, views[tensor.name].row_count))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == archs.by_name(original.architecture).gguf
    assert fields["general.file_type"] == 0
    assert fields["general.quantization_version"] == 2


def logits(model, decoder):
    import torch

    ids = torch.arange(5, 45)[None] % (model.config.vocab_size - 5) + 5
    extra = {"decoder_input_ids": ids[:, :20]} if decoder else {}
    with torch.no_grad():
        return model(ids, **extra)[0]


@pytest.mark.parametrize("variant", tiny.GGUF)
@pytest.mark.parametrize("keys", ["all", "public"])
def test_transformers_computes_the_same_from_what_comes_back(variant, keys, tmp_path):
    """`public`: without the keys of our own, config.json is rebuilt from those that everybody writes."""
    import transformers

    model, folder = tiny.make(variant)
    path = export(loaders.load(folder), tmp_path / "gguf")[0]
    if keys == "public":
        prefixes = (_metadata.CONFIG_KEY, _metadata.GENERATION_KEY)
        path = without_keys(path, tmp_path / "public.gguf", *prefixes)
    back = loaders.load(path)
    export(back, tmp_path / "hf", safetensors)
    name = model.base_model_prefix if "bert" in variant else ""
    reference = getattr(model, name, model) if name else model
    options = {"add_pooling_layer": False} if "bert" in variant else {}
    again = type(reference).from_pretrained(tmp_path / "hf", attn_implementation="eager", **options).eval()
    assert isinstance(again, transformers.PreTrainedModel)
    decoder = "gpt54" in variant
    difference = (logits(reference, decoder) - logits(again, decoder)).abs().max().item()
    assert difference <= (2e-5 if "gemma3" in variant else 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["gpt54", "gemma3", "llama"])
def test_half_precision_sources(variant, dtype, tmp_path):
    """Matrices stay as they are, vectors become float32, and both come back exactly (gemma's norms too)."""
    _, folder = tiny.make(variant, dtype=dtype)
    original = loaders.load(folder)
    back = loaders.load(export(original, tmp_path)[0])
    for name, tensor in back.tensors.items():
        assert tensor.dtype == ("float32" if "norm" in name or "relative" in name else dtype)
        if not (variant == "gemma3" and "norm" in name and dtype == "float16"):
            assert np.array_equal(values(tensor), values(original.tensors[name])), name


@pytest.mark.parametrize("variant", ["gpt54", "llama-llama3"])
def test_shards(variant, tmp_path):
    _, folder = tiny.make(variant)
    original = loaders.load(folder)
    files = export(original, tmp_path / "shards", shard_bytes=100_000)
    names = sorted(file.name for file in files)
    assert len(names) > 2
    assert names[0].endswith(f"-00001-of-{len(names):05d}.gguf")
    for place in (tmp_path / "shards" / names[0], tmp_path / "shards"):
        back = loaders.load(place)
        assert back.tensors.keys() == original.tensors.keys()
        assert len(back.source.files) == len(names)
        assert all(np.array_equal(values(back.tensors[n]), values(t)) for n, t in original.tensors.items())


def test_file_names():
    _, folder = tiny.make("llama")
    original = loaders.load(folder)
    for name, label, expected in [
        ("Tiny", "keep", "Tiny-118K-F32.gguf"),
        ("a/b: c", "q4_k_m", "a-b-c-118K-Q4_K_M.gguf"),
        ("SmolLM2-135M-Instruct", "keep", "SmolLM2-135M-Instruct-F32.gguf"),
        ("...", "keep", "model-118K-F32.gguf"),
    ]:
        sink = gguf.open_sink(original, folder, SinkOptions(name, label))
        assert [shard.name for shard in sink._shards] == [expected]


def test_unusual_local_layers(tmp_path):
    changes = {"layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"]}
    _, folder = tiny.make("gemma3", **changes)
    path = export(loaders.load(folder), tmp_path)[0]
    assert gguf_format.read(path).keys["gemma3.attention.sliding_window_pattern"] == [False, True] * 3 + [
        False
    ]
    public = without_keys(path, tmp_path / "public.gguf", "gpt54_convert.")
    assert loaders.load(public).config["layer_types"] == changes["layer_types"]


def test_an_edited_key_wins_over_our_copy_of_the_config(tmp_path):
    _, folder = tiny.make("llama")
    path = export(loaders.load(folder), tmp_path)[0]
    raw = path.read_bytes()
    at = raw.index(b"llama.context_length") + len(b"llama.context_length") + 4
    path.write_bytes(raw[:at] + (128).to_bytes(4, "little") + raw[at + 4 :])
    assert loaders.load(path).config["max_position_embeddings"] == 128


def test_a_model_without_tokenizer(tmp_path):
    from dataclasses import replace

    _, folder = tiny.make("qwen3")
    original = replace(loaders.load(folder), tokenizer={})
    back = loaders.load(export(original, tmp_path)[0])
    assert dict(back.tokenizer) == {}
    assert back.tensors.keys() == original.tensors.keys()
