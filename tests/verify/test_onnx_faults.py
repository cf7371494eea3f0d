"""Every fault, put into a good ONNX folder, ends in exit 3; the clean folder in 0."""

import json
import shutil

import faults
import onnx
import onnx_faults
import pytest
import tiny

from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify import verify
from gpt54_convert.verify.options import VerifyOptions

pytestmark = pytest.mark.slow
OPTIONS = VerifyOptions(tokens=640, context=64, threads=1)
# These change the graph, and so need an export of their own.
IN_THE_GRAPH = {"head tied", "rope base wrong", "norm epsilon wrong", "T5: head tied"}


def export(folder, output):
    where = Export(output=output, to=("onnx",), verify=False)
    run(Recipe(folder, Quantize(scheme="int4"), where), Report())
    return output / "onnx"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """variant -> (model, its clean artifact), exported once."""
    made = {}

    def get(variant):
        if variant not in made:
            model = tiny.make(variant)[1]
            made[variant] = model, export(model, tmp_path_factory.mktemp("onnx"))
        return made[variant]

    return get


def named_first(verdict):
    return next(
        check.detail for check in verdict.failures if (check.kind, check.name) == ("tensors", "first")
    )


@pytest.mark.parametrize("variant", ["llama", "llama-bias", "gpt54"])
def test_a_clean_folder_passes(variant, good):
    model, artifact = good(variant)
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 0, verdict.failures
    assert {check.kind for check in verdict.checks} == {"files", "config", "tokenizer", "tensors", "outputs"}
    assert set(verdict.split) == {"conversion", "quantization", "runtime", "total"}
    names = {check.name for check in verdict.checks}
    assert ("model_in_place.onnx" in names) == (artifact / "model_in_place.onnx").exists()
    assert variant != "llama-bias" or "model_in_place.onnx" in names


@pytest.mark.parametrize("variant", ["llama", "gpt54"])
def test_the_layout_of_transformers_js(variant, tmp_path):
    """Its graphs lie in a folder of their own, the decoders of an encoder-decoder in one."""
    model = tiny.make(variant)[1]
    where = Export(output=tmp_path, to=("onnx",), layout="transformers.js")
    (made,) = run(Recipe(model, Quantize(scheme="int4"), where), Report())
    assert made.verdict.outcome == "pass", made.verdict.failures
    assert {check.kind for check in made.verdict.checks if check.outcome == "pass"} >= {"config", "tensors"}
    assert verify(made.folder, model, OPTIONS).exit_code == 0
    name = faults.DOWN if variant == "llama" else "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    (made.folder / "manifest.json").unlink()
    with onnx_faults.opened(made.folder / "onnx", f"{name}.scales") as scales:
        scales.reshape(-1)[7] *= 2
    assert "first ffn.down of layer 1" in named_first(verify(made.folder, model, OPTIONS))


def test_weights_that_meet_rounded_inputs_are_compared_too(tmp_path):
    """No operator over codes reads them; a manifest is not needed."""
    model = tiny.make("llama")[1]
    (made,) = run(Recipe(model, Quantize(scheme="w8a8"), Export(tmp_path, to=("onnx",))), Report())
    assert "tensors" in {check.kind for check in made.verdict.checks if check.outcome == "pass"}
    (made.folder / "manifest.json").unlink()
    assert verify(made.folder, model, VerifyOptions("tensors")).exit_code == 0
    with onnx_faults.opened(made.folder, f"{faults.DOWN.replace('down', 'up')}.scales") as scales:
        scales[7] *= 1.1
    verdict = verify(made.folder, model, VerifyOptions("tensors"))
    assert "first ffn.up of layer 1" in named_first(verdict)


@pytest.mark.parametrize("name", faults.SOURCE)
def test_a_fault_of_conversion_fails(name, good, tmp_path):
    variant, change, first = faults.SOURCE[name]
    model, clean = good(variant)
    bad = faults.copy(model, tmp_path / "bad", change)
    if name in IN_THE_GRAPH:
        artifact = export(bad, tmp_path / "out")
    else:
        artifact = shutil.copytree(clean, tmp_path / "out")
        onnx_faults.transplant(bad, model, artifact)
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 3
    if first:
        assert first in named_first(verdict)


@pytest.mark.parametrize("name", faults.CODES)
def test_a_fault_of_packing_fails(name, good, tmp_path):
    model, clean = good("llama")
    artifact = shutil.copytree(clean, tmp_path / "out")
    onnx_faults.change_codes(artifact, faults.DOWN, faults.CODES[name])
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 3
    assert "first ffn.down of layer 1" in named_first(verdict)


@pytest.mark.parametrize("name", faults.TOKENIZER)
def test_a_fault_of_the_tokenizer_fails(name, good, tmp_path):
    model, clean = good("llama")
    model, artifact = shutil.copytree(model, tmp_path / "model"), shutil.copytree(clean, tmp_path / "out")
    (artifact / "manifest.json").unlink()
    for where, change in zip((model, artifact), faults.TOKENIZER[name], strict=True):
        faults.change_tokenizer(where, change)
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 3
    assert "tokenizer" in {check.kind for check in verdict.failures}


def _set(file, *path):
    """A change of one entry of a small JSON file."""

    def change(folder):
        content = json.loads((folder / file).read_text())
        *outer, last, value = path
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
        (folder / file).write_text(json.dumps(content))

    return change


def _cut(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-5])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("genai_config.json", "model", "decoder", "num_key_value_heads", 4), "num_key_value_heads 4"),
        (_set("genai_config.json", "model", "decoder", "filename", "none.onnx"), "'none.onnx'"),
        (_set("genai_config.json", "model", "eos_token_id", 9), "eos_token_id 9"),
        (_set("genai_config.json", "model", None), "no decoder"),
        (_set("generation_config.json", "eos_token_id", 9), "eos_token_id 9"),
        (_cut("genai_config.json"), "genai_config.json is not a JSON object"),
        (_cut("tokenizer_config.json"), "tokenizer_config.json is not a JSON object"),
    ],
)
def test_a_fault_in_a_small_file_fails(change, says, good, tmp_path):
    """Without a manifest, whose hashes would tell."""
    model, clean = good("llama-bias")
    artifact = shutil.copytree(clean, tmp_path / "out")
    (artifact / "manifest.json").unlink()
    options = VerifyOptions("tensors")
    assert verify(artifact, model, options).exit_code == 0
    change(artifact)
    verdict = verify(artifact, model, options)
    assert verdict.exit_code == 3
    (found,) = verdict.failures
    assert says in found.detail


def test_a_truncated_file_is_refused(good, tmp_path):
    model, clean = good("llama")
    artifact = shutil.copytree(clean, tmp_path / "out")
    with open(artifact / "model.onnx_data", "r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    assert verify(artifact, model, OPTIONS).exit_code == 3  # the manifest knows its size
    (artifact / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"onnx_data"):
        verify(artifact, model, OPTIONS)


def test_a_graph_that_is_none_is_refused(good, tmp_path):
    model, clean = good("llama")
    artifact = shutil.copytree(clean, tmp_path / "out")
    (artifact / "manifest.json").unlink()
    (artifact / "model.onnx").write_bytes(b"\x00" * 500)
    with pytest.raises(InputError):
        verify(artifact, model, OPTIONS)


def _scale(node):
    next(entry for entry in node.attribute if entry.name == "scale").f *= 0.5


def _other_heads(node):
    next(entry for entry in node.attribute if entry.name == "kv_num_heads").i *= 2


@pytest.mark.parametrize("change", [_scale, _other_heads])
def test_a_fault_in_the_second_graph_alone_fails(change, good, tmp_path):
    model, clean = good("llama-bias")
    artifact = shutil.copytree(clean, tmp_path / "out")
    (artifact / "manifest.json").unlink()
    path = artifact / "model_in_place.onnx"
    graph = onnx.load(path, load_external_data=False)
    change(next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention"))
    path.write_bytes(graph.SerializeToString())
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 3
    assert [check.name for check in verdict.failures] == ["model_in_place.onnx"]


def _slower(graph):
    table = next(each for each in graph.initializer if each.name.endswith("inv_freq"))
    values = onnx.numpy_helper.to_array(table).copy()
    values[..., 1:] *= 0.9
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))


def _other_epsilon(graph):
    for node in graph.node:
        for entry in node.attribute:
            if entry.name == "epsilon":
                entry.f *= 100


@pytest.mark.parametrize("change", [_slower, _other_epsilon])
def test_a_fault_of_the_graph_that_rounding_would_hide_fails(change, good, tmp_path):
    model, clean = good("llama")
    artifact = shutil.copytree(clean, tmp_path / "out")
    (artifact / "manifest.json").unlink()
    for path in artifact.glob("*.onnx"):  # in both graphs alike
        graph = onnx.load(path, load_external_data=False)
        before = graph.SerializeToString()
        change(graph.graph)
        assert graph.SerializeToString() != before
        path.write_bytes(graph.SerializeToString())
    verdict = verify(artifact, model, OPTIONS)
    assert verdict.exit_code == 3
    assert "graph" in [check.name for check in verdict.failures]
