"""Random models of the family: exact shapes, the same bytes each time, recognised, and said to be random."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from gpt54_convert import archs, loaders
from gpt54_convert.archs._family import TIERS, config
from gpt54_convert.cli import cli
from gpt54_convert.core.dtypes import to_float32
from gpt54_convert.fresh.options import Init
from gpt54_convert.fresh.weights import checkpoint


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano")
    words = ["init", "--tier", "nano", "--scale", "1/16", "--shard-size", "1MB", "-o", str(folder)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return folder / "safetensors"


@pytest.mark.parametrize(("tier", "given"), [("full", 6.7e9), ("mini", 1.3e9), ("nano", 520e6)])
def test_totals_are_those_given(tier, given):
    assert abs(checkpoint(Init(tier)).parameter_count / given - 1) < 0.005


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("scale", ["1", "1/16"])
def test_shapes_are_those_of_transformers(tier, scale):
    fresh = checkpoint(Init(tier, scale))
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**fresh.config))
    theirs = {
        name: tuple(value.shape) for name, value in model.state_dict().items() if "embed_tokens" not in name
    }
    assert {name: tensor.shape for name, tensor in fresh.tensors.items()} == theirs


def test_the_folder_opens_and_its_logits_are_of_size_one(nano):
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(nano, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(nano)
    text = tokenizer("It is a truth universally acknowledged", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=text, decoder_input_ids=text).logits
    assert 0.5 < logits.std() < 2
    assert len(list(nano.glob("*.safetensors"))) > 1


def test_it_says_that_it_is_random(nano):
    assert json.loads((nano / "config.json").read_text())["gpt54_convert"]["weights"] == "random"
    assert "The weights are random" in (nano / "README.md").read_text()
    found = json.loads(CliRunner().invoke(cli, ["inspect", str(nano), "--json"]).stdout)
    assert found["weights"] == "random"
    assert found["family"] == {"of": "GPT-5.4", "tier": "nano", "scale": "1/16"}


def test_the_bytes_depend_on_the_seed_and_on_nothing_else(nano, tmp_path):
    same = checkpoint(Init("nano", "1/16"))
    other = checkpoint(Init("nano", "1/16", seed=1))
    stored = loaders.load(nano).tensors
    for name in ("shared.weight", "decoder.block.5.layer.2.DenseReluDense.wo.weight"):
        rows = stored[name].rows(7, 31)  # across and within the ranges that are drawn together
        assert np.array_equal(rows, same.tensors[name].rows(7, 31))
        assert not np.array_equal(rows, other.tensors[name].rows(7, 31))


def test_deviations_are_those_of_t5():
    fresh = checkpoint(Init("mini", "1/4"))
    for part, wanted in {
        "shared": 1.0,
        "lm_head": 320**-0.5,
        "encoder.block.3.layer.0.SelfAttention.q": (320 * 16) ** -0.5,
        "encoder.block.3.layer.0.SelfAttention.o": (20 * 16) ** -0.5,
        "decoder.block.3.layer.2.DenseReluDense.wo": 1504**-0.5,
    }.items():
        tensor = fresh.tensors[f"{part}.weight"]
        values = to_float32(tensor.rows(0, 300), tensor.dtype)
        assert values.std() == pytest.approx(wanted, rel=0.02)
        assert abs(values.mean()) < 0.02 * wanted


@pytest.mark.parametrize(("tier", "scale"), [("full", "1"), ("mini", "1/8"), ("nano", "1/32")])
def test_scaled_tiers_are_recognised(tier, scale):
    from gpt54_convert.archs._family import recognise

    values = config(TIERS[tier], Fraction(scale))
    found = recognise("gpt54", archs.by_name("gpt54").sizes({**values, "vocab_size": 5000}))
    assert found == (TIERS[tier], Fraction(scale))
    values["num_layers"] += 1
    assert recognise("gpt54", archs.by_name("gpt54").sizes(values)) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scale", "2"], "not between 0 and 1"),
        (["--scale", "tiny"], "is no number"),
        (["--scale", "1/0"], "is no number"),
        (["--scale", "1/3"], "does not suit full"),
        (["--tier", "nano", "--scale", "1/64", "-q"], ""),
        (["--tier", "huge"], "'huge' is not one of"),
        (["--dtype", "int8"], "'int8' is not one of"),
    ],
)
def test_what_cannot_be_is_refused(words, says, tmp_path):
    result = CliRunner().invoke(cli, ["init", *words, "-o", str(tmp_path / "out")])
    if not says:
        assert result.exit_code == 0
        return
    assert says in result.output + str(result.exception)
    assert getattr(result.exception, "exit_code", result.exit_code) == 2
    assert not (tmp_path / "out").exists()
