"""Importance matrices as files: written for llama.cpp, read from it, and used without running a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from gpt54_convert import loaders, pipeline
from gpt54_convert.calibrate import gather, imatrix_file
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, OutputError, UsageError
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import grid
from gpt54_convert.recipe import Export, Quantize, Recipe

QUICK = Calibration(calibration_samples=4, calibration_length=24)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tiny.make("llama")[1]
    path = tmp_path_factory.mktemp("stats") / "imatrix.gguf"
    facts = gather.calibrate(loaders.load(folder), QUICK, path, Report())
    return folder, path, facts


def test_the_file_is_what_llama_cpp_writes(collected):
    folder, path, facts = collected
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 24
    assert facts["text_sha256"] in reader.fields["imatrix.datasets"].contents()[0]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert facts["matrices"] == 15 and len(tensors) == 30 and facts["tokens"] == 96
    q = tensors["blk.0.attn_q.weight.in_sum2"]
    assert list(q.shape) == [64, 1]  # innermost first
    assert tensors["blk.0.attn_q.weight.counts"].data.reshape(-1)[0] == 96
    np.testing.assert_array_equal(q.data, tensors["blk.0.attn_k.weight.in_sum2"].data)
    found = imatrix_file.read(path, loaders.load(folder))["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(found.mean_square * 96, q.data.reshape(-1), rtol=1e-6)


def theirs(path: Path, name: str = "blk.1.ffn_down.weight", columns: int = 96, **changes) -> Path:
    """A file as gguf-py writes it."""
    writer = GGUFWriter(str(path), "")
    writer.add_key_value("general.type", "imatrix", GGUFValueType.STRING)
    sums = np.linspace(1, 50, columns, dtype=np.float32).reshape(1, columns)
    writer.add_tensor(f"{name}.in_sum2", changes.get("sums", sums))
    writer.add_tensor(f"{name}.counts", np.full((1, 1), changes.get("count", 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_anybodys_file_weighs_the_search(collected, tmp_path):
    folder, _, _ = collected
    stats = theirs(tmp_path / "theirs.gguf")
    export = Export(output=tmp_path / "out", to=("gguf",))
    recipe = Recipe(folder, Quantize(scheme="q4_0", method="imatrix", stats=stats), export)
    heard = []
    report = Report()
    report.note = heard.append
    artifact = pipeline.run(recipe, report)[0]
    assert [note for note in heard if "knows nothing of 13 matrices" in note and "layers.0.self_attn" in note]
    file = loaders.load(next(artifact.folder.glob("*.gguf")))
    source = loaders.load(folder)
    importance = np.linspace(1, 50, 96, dtype=np.float32) / 5
    from gpt54_convert.quantize.kernels import flat

    for layer, weights in ((1, importance), (0, None)):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        tensor = source.tensors[name]
        expected = flat.search(tensor.float_rows(0, tensor.row_count), grid("q4_0"), weights)
        np.testing.assert_array_equal(file.tensors[name].read_codes(0, 64).codes, expected.codes)
    recorded = json.loads((artifact.folder / "manifest.json").read_text())["recipe"]["calibration"]
    assert len(recorded["stats_sha256"]) == 64
    assert solver("imatrix") is not None


def test_what_is_no_importance_matrix_is_refused(collected, tmp_path):
    folder, _, _ = collected
    model = loaders.load(folder)
    for name, file, problem in (
        ("gone", lambda path: path, "does not exist"),
        ("old.dat", lambda path: path.write_bytes(b"\1\0\0\0abc") and path, "llama-imatrix --in-file"),
        ("other", lambda path: theirs(path, "blk.7.attn_q.weight"), "none of this model's matrices"),
        ("wide", lambda path: theirs(path, columns=32), "made from another model"),
        ("nan", lambda path: theirs(path, sums=np.full((1, 96), np.nan, np.float32)), "no sums of squares"),
        ("less", lambda path: theirs(path, sums=np.full((1, 96), -1, np.float32)), "no sums of squares"),
        ("none", lambda path: theirs(path, count=0), "no sums of squares"),
    ):
        path = tmp_path / name
        file(path)
        with pytest.raises(InputError, match=problem):
            imatrix_file.read(path, model)
    cut = tmp_path / "cut"
    cut.write_bytes(theirs(tmp_path / "whole").read_bytes()[:-200])
    with pytest.raises(InputError):
        imatrix_file.read(cut, model)
    for method in ("gptq", "search"):
        with pytest.raises(UsageError, match="--stats holds mean squares"):
            Quantize(method=method, stats=tmp_path / "whole")


def test_the_model_itself_is_not_replaced(tmp_path):
    source = tiny.make("llama")[1] / "model.safetensors"
    before = source.read_bytes()
    with pytest.raises(OutputError, match="is the model being read"):
        gather.calibrate(loaders.load(source.parent), QUICK, source, Report())
    assert source.read_bytes() == before


def test_a_folder_that_is_a_file_is_an_error_of_the_output(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoint = loaders.load(tiny.make("llama")[1])
    with pytest.raises(OutputError, match="cannot write to"):
        imatrix_file.write(tmp_path / "file" / "imatrix.gguf", checkpoint, {}, "text", 24)


def test_the_command(tmp_path):
    folder = tiny.make("qwen2")[1]
    goal = tmp_path / "some" / "imatrix.gguf"
    run = [sys.executable, "-m", "gpt54_convert", "calibrate", str(folder), "-o", str(goal), "--json"]
    run += ["--calibration-samples", "2", "--calibration-length", "16"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["tokens"] == 32 and Path(facts["path"]) == goal and goal.is_file()
    assert list(goal.parent.iterdir()) == [goal]


@pytest.mark.llama_cpp
def test_llama_cpp_quantizes_with_it(collected, tmp_path):
    """llama.cpp's own quantizer takes our means under our names, and answers other bytes than without."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import llama_quantizer

    from gpt54_convert.recipe import Convert

    folder, path, _ = collected
    export = Export(output=tmp_path / "float", to=("gguf",), verify=False)
    pipeline.run(Recipe(folder, Convert("float32"), export), Report())
    source = next((tmp_path / "float").rglob("*.gguf"))
    tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in GGUFReader(path).tensors}
    matrix = {
        name.removesuffix(".in_sum2"): values / tensors[name.replace("in_sum2", "counts")][0]
        for name, values in tensors.items()
        if name.endswith(".in_sum2")
    }
    made = {tensor.name for tensor in GGUFReader(source).tensors}
    assert set(matrix) <= made, "a name that llama.cpp does not know"
    results = []
    for given in (None, matrix):
        goal = tmp_path / f"{given is None}.gguf"
        llama_quantizer.quantize(source, goal, "Q4_0", given)
        data = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(goal).tensors}
        results.append(data["blk.0.ffn_down.weight"])
    assert (results[0] != results[1]).any()
