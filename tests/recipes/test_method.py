"""Which method chooses the codes where the user names none, and what is said about it."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from gpt54_convert import loaders, method
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UsageError
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.transforms.awq import Awq


class Notes(Report):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def llama():
    return loaders.load(tiny.make("llama")[1])


def resolved(checkpoint, step, report=None):
    recipe = Recipe(Path("source"), step, Export())
    return method.resolve(recipe, checkpoint, report or Notes()).step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "gptq"),
        *(({"bits": bits}, "gptq") for bits in (2, 3, 4, 5, 6)),
        ({"bits": 8}, "search"),
        ({"target_bpw": 4.5}, "gptq"),
        ({"scheme": "int4"}, "search"),
        ({"bits": 4, "fast": True}, "search"),
        ({"bits": 4, "method": "rtn"}, "rtn"),
        ({"scheme": "int4", "method": "gptq"}, "gptq"),
    ],
)
def test_what_is_chosen(llama, options, expected):
    report = Notes()
    assert resolved(llama, Quantize(**options), report).method == expected
    assert report.said == []


def test_floats_have_no_method(llama):
    assert resolved(llama, Convert("float16")) == Convert("float16")


def test_what_cannot_be_run_is_searched_and_the_reason_told(llama, monkeypatch):
    lacking = replace(llama, tokenizer={})
    unknown = replace(llama, architecture=None)
    for checkpoint, reason in ((lacking, "no tokenizer.json"), (unknown, "no architecture")):
        report = Notes()
        assert resolved(checkpoint, Quantize(bits=4), report).method == "search"
        assert len(report.said) == 1 and reason in report.said[0] and "--fast" in report.said[0]
        assert resolved(checkpoint, Quantize(bits=4, fast=True), silent := Notes()).method == "search"
        assert silent.said == []
    monkeypatch.setattr(method, "find_spec", lambda name: None if name == "torch" else name)
    assert resolved(llama, Quantize(bits=4), report := Notes()).method == "search"
    assert "torch is not installed (pip install 'gpt54-convert[torch]')" in report.said[0]


def test_what_takes_minutes_is_announced(llama, monkeypatch):
    parameters = 1.2e9
    monkeypatch.setattr(type(llama), "parameter_count", property(lambda checkpoint: parameters))
    assert resolved(llama, Quantize(), report := Notes()).method == "gptq"
    assert "minutes" in report.said[0] and "--fast" in report.said[0]
    assert method.estimated_s(Quantize(), llama, 1) == 2 * method.estimated_s(Quantize(), llama, 2)
    assert method.estimated_s(Quantize(method="search"), llama, 1) == 0


def test_fast_is_scale_search_and_nothing_else():
    assert Quantize(fast=True, method="search").method == "search"
    with pytest.raises(UsageError, match="--fast is scale search, and --method gptq is not"):
        Quantize(fast=True, method="gptq")


def test_calibrating_takes_the_memory_of_a_layer_and_of_its_widest_moment(llama):
    assert method.estimated_bytes(Quantize(method="search"), llama) == 0
    layers = [tensor for name, tensor in llama.tensors.items() if ".layers.0." in name]
    widest = max(tensor.columns for tensor in layers if len(tensor.shape) == 2)
    found = method.estimated_bytes(Quantize(), llama) - method._RUNNING_BYTES
    assert found == 4 * sum(tensor.size for tensor in layers) + 3 * 4 * widest**2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 4, "fast": True}, "search"),
        ({"scheme": "int4", "method": "rtn"}, "rtn"),
        ({"scheme": "int4", "method": "imatrix", "stats": Path("some.gguf")}, "--stats"),
        ({"scheme": "int4", "method": "imatrix"}, None),
        ({"bits": 4}, None),
        ({"target_bpw": 4.5, "fast": True}, None),
        ({"scheme": "w8a8", "activations": "static"}, None),
    ],
)
def test_a_text_that_nothing_reads_is_left_out_and_told(llama, options, told):
    """It need not even be there, and the manifest must not say that weights were fitted to it."""
    text = Path("missing.txt")
    step = resolved(llama, Quantize(calibration=text, **options), report := Notes())
    assert step.calibration == (None if told else text)
    assert [told in said and "missing.txt is not used" in said for said in report.said] == [True] * bool(told)


def test_a_text_that_only_a_pass_reads_is_the_passes_alone(llama):
    text = Path("some.txt")
    step = Quantize(bits=4, fast=True, calibration=text)
    recipe = Recipe(Path("source"), step, Export(), (Awq(calibration=text),))
    found = method.resolve(recipe, llama, report := Notes())
    assert found.step.calibration is None and found.passes == recipe.passes
    assert report.said == []
