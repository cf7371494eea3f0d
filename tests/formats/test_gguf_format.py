"""Our GGUF reader and header writer against the gguf package's, each as the other's oracle."""

import time

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.formats import gguf, gguf_layout
from gpt54_convert.formats.safetensors import Writer

KEYS = [
    ("general.architecture", "STRING", "llama"),
    ("a.u8", "UINT8", 255),
    ("a.i8", "INT8", -128),
    ("a.u16", "UINT16", 65535),
    ("a.i16", "INT16", -32768),
    ("a.u32", "UINT32", 4294967295),
    ("a.i32", "INT32", -2147483648),
    ("a.f32", "FLOAT32", 0.1),
    ("a.bool", "BOOL", True),
    ("a.u64", "UINT64", 2**64 - 1),
    ("a.i64", "INT64", -(2**63)),
    ("a.f64", "FLOAT64", 0.1),
    ("a.text", "STRING", "ünï ☃ \x00 end"),
    ("a.texts", "ARRAY:STRING", ["", "a", "日本"]),
    ("a.numbers", "ARRAY:FLOAT32", [0.5, -1.0]),
    ("a.flags", "ARRAY:BOOL", [True, False]),
    ("a.none", "ARRAY:INT32", []),
]


def tensor(name, values):
    return LazyTensor(name, values.shape, str(values.dtype), lambda a, b: values[a:b])


def write(path, keys, tensors):
    layout = gguf_layout.plan(keys, [(lazy, kind) for lazy, kind, _ in tensors])
    writer = Writer(path, layout)
    for lazy, _, rows in tensors:
        for row in range(len(rows)):  # any order and any cut must do
            writer.put(lazy.name, len(rows) - 1 - row, rows[len(rows) - 1 - row :][:1])
    writer.close()
    assert path.stat().st_size == layout.size_bytes
    return path


def test_the_gguf_package_reads_what_we_write(tmp_path):
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 5)).astype(np.float32)
    vector = rng.standard_normal(7).astype(np.float32)
    blocks = rng.integers(0, 256, (4, 2 * 34), np.uint8)
    quantized = LazyTensor("c", (4, 64), "float32", lambda a, b: np.zeros((b - a, 64), np.float32))
    tensors = [(tensor("a", floats), "F32", floats), (tensor("b", vector), "F32", vector)]
    path = write(tmp_path / "x.gguf", KEYS, [*tensors, (quantized, "Q8_0", blocks)])
    read = GGUFReader(path)
    for name, kind, value in KEYS:
        found = read.fields[name].contents()
        assert np.float32(found) == np.float32(value) if kind == "FLOAT32" else found == value
        assert read.fields[name].types[0].name == kind.partition(":")[0]
    assert [each.name for each in read.tensors] == ["a", "b", "c"]
    assert np.array_equal(read.tensors[0].data, floats)
    assert np.array_equal(read.tensors[1].data, vector)
    assert np.array_equal(read.tensors[2].data, blocks)
    assert all(each.data_offset % 32 == 0 for each in read.tensors)


def test_we_read_what_the_gguf_package_writes(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(64)
    for name, kind, value in KEYS[1:]:
        outer, _, inner = kind.partition(":")
        if value != []:
            sub = GGUFValueType[inner] if inner else None
            writer.add_key_value(name, value, GGUFValueType[outer], sub_type=sub)
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer.add_tensor("cube", values)
    writer.add_tensor("half", values[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.read(tmp_path / "x.gguf")
    for name, kind, value in KEYS[1:]:
        if value != []:
            same = np.float32(found.keys[name]) == np.float32(value) if kind == "FLOAT32" else None
            assert same if same is not None else found.keys[name] == value
            assert found.types[name] == kind
    cube = found.tensors["cube"]
    assert (cube.shape, cube.type, cube.offset % 64) == ((2, 3, 4), "F32", 0)
    assert np.array_equal(found.file.array(cube.offset, (2, 3, 4), np.dtype("<f4")), values)
    assert found.tensors["half"].type == "F16"


def test_row_sizes_of_every_type_are_ggmls(tmp_path):
    tensors = []
    for kind, (block, size) in GGML_QUANT_SIZES.items():
        lazy = LazyTensor(kind.name, (2, 2 * block), "float32", lambda a, b: None)
        tensors.append((lazy, kind.name, np.full((2, 2 * size), int(kind), np.uint8)))
    path = write(tmp_path / "x.gguf", KEYS, tensors)
    found = gguf.read(path)
    for lazy, kind, rows in tensors:
        stored = found.tensors[lazy.name]
        assert (stored.type, stored.row_bytes) == (kind, rows.shape[1])
        assert np.array_equal(found.file.array(stored.offset, rows.shape, rows.dtype), rows)
    assert {each.tensor_type for each in GGUFReader(path).tensors} == set(GGMLQuantizationType)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=40))
def test_texts_survive(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("texts") / "x.gguf"
    write(path, [("a", "ARRAY:STRING", texts), ("b", "UINT32", 7)], [])
    assert gguf.read(path).keys == {"a": texts, "b": 7}


def test_texts_across_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "CHUNK_BYTES", 64)
    texts = ["x" * (n % 150) for n in range(300)]
    path = write(tmp_path / "x.gguf", [("a", "ARRAY:STRING", texts)], [])
    assert gguf.read(path).keys == {"a": texts}


def test_a_large_vocabulary_is_read_fast(tmp_path):
    """The gguf package's reader takes 13.8 s for this."""
    tokens = [f"▁token{number}" for number in range(262_144)]
    keys = [
        ("tokens", "ARRAY:STRING", tokens),
        ("scores", "ARRAY:FLOAT32", np.arange(262_144)),
        ("types", "ARRAY:INT32", np.ones(262_144, np.int32)),
    ]
    path = write(tmp_path / "x.gguf", keys, [])
    gguf.ggml_types()
    best = min(_seconds(path) for _ in range(3))
    assert best < 1.0
    assert gguf.read(path).keys["tokens"] == tokens


def _seconds(path):
    start = time.perf_counter()
    gguf.read(path)
    return time.perf_counter() - start


def test_a_number_that_does_not_fit_is_refused():
    with pytest.raises(OverflowError):
        gguf_layout.plan([("a", "UINT32", -1)], [])
