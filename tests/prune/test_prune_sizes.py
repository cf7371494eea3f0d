"""Which sizes options lead to, and what is refused before any work."""

import json
import sys
from fractions import Fraction

import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import archs, loaders
from gpt54_convert.archs._family import TIERS, config
from gpt54_convert.cli import cli
from gpt54_convert.errors import UsageError
from gpt54_convert.prune.step import Prune
from gpt54_convert.prune.targets import parameters, targets

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
TINYLLAMA = {**SMOLLM2, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}
QWEN = {
    **SMOLLM2,
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}
BERT = {
    **SMOLLM2,
    "model_type": "bert",
    "hidden_size": 384,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
}


def sizes_of(values, tied=True, **options):
    architecture = archs.for_config(values)
    return targets(Prune(**options), architecture, architecture.sizes(values), tied)


@pytest.mark.parametrize("tier", ["mini", "nano"])
@pytest.mark.parametrize("scale", ["1", "1/4", "1/16"])
def test_full_becomes_the_tier_itself(tier, scale):
    full, wanted = (
        archs.for_config(c).sizes(c) for c in (config(TIERS[t], Fraction(scale)) for t in ("full", tier))
    )
    architecture = archs.by_name("gpt54")
    assert targets(Prune(tier=tier), architecture, full, False) == wanted


@pytest.mark.parametrize(
    ("values", "tier", "wanted"),
    [
        (SMOLLM2, "mini", (15, 384, 960, 6, 2)),
        (SMOLLM2, "nano", (8, 192, 480, 3, 1)),
        (TINYLLAMA, "mini", (15, 1280, 960, 20, 4)),
        (QWEN, "mini", (15, 2304, 960, 18, 3)),
        (GPT2, "mini", (6, 512, 1920, 8, None)),
        (BERT, "nano", (2, 128, 480, 4, None)),
    ],
)
def test_tiers_of_other_models(values, tier, wanted):
    found = sizes_of(values, tier=tier)
    assert tuple(found.get(name) for name in ("layers", "width", "ffn", "heads", "kv_heads")) == wanted


@pytest.mark.parametrize("values", [SMOLLM2, TINYLLAMA, QWEN, GPT2, BERT, config(TIERS["full"], Fraction(1))])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_share_of_the_parameters_is_met(values, share):
    """At most the share, and not much less; widths of groups of 32 that heads divide."""
    architecture = archs.for_config(values)
    found = sizes_of(values, keep_params=share)
    whole = parameters(architecture, architecture.sizes(values), True)
    assert 0.97 * share < parameters(architecture, found, True) / whole <= share
    assert found["width"] % 32 == 0
    assert found["heads"] % found.get("kv_heads", 1) == 0


def test_fixed_sizes_stay_fixed():
    found = sizes_of(SMOLLM2, keep_params=0.5, layers=30)
    assert found["layers"] == 30
    assert found["width"] < 576


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        (SMOLLM2, {"layers": 31}, "31 layers are more than the model's 30"),
        (SMOLLM2, {"width": 608}, "608 channels of width are more than the model's 576"),
        (SMOLLM2, {"ffn": 2000}, "more than the model's 1536"),
        (SMOLLM2, {"heads": 8}, "8 heads do not divide into 3 KV heads"),
        (SMOLLM2, {"heads": 6, "kv_heads": 1}, "at most 3 heads each"),
        (SMOLLM2, {"width": 500}, "500 is none of 9; take a --width of 495"),
        (SMOLLM2, {"encoder_layers": 2}, "one stack of layers"),
        (GPT2, {"width": 500}, "take a --width of 448 or 512"),
        (GPT2, {"heads": 8, "width": 768}, "give one of them"),
        (GPT2, {"kv_heads": 4}, "give --heads"),
        (SMOLLM2, {"keep_params": 0.01}, "take a larger --keep-params"),
    ],
)
def test_impossible_sizes_are_refused(values, options, says):
    with pytest.raises(UsageError, match=says):
        sizes_of(values, **options)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to remove was named"),
        (["--tier", "mini", "--keep-params", "0.5"], "give one of them"),
        (["--keep-params", "1.5"], "between 0 and 1"),
        (["--layers", "0"], "--layers"),
        (["--layers", "2", "--layer-choice", "fist"], "'fist' is not one of"),
        (["--ffn", "64", "--importance", "luck"], "'luck' is not one of"),
        (["--layers", "9"], "more than the model's 4"),
    ],
)
def test_the_command_refuses_with_one_sentence(words, says, tmp_path):
    result = CliRunner().invoke(cli, ["prune", *words, "-o", str(tmp_path / "out")])
    message = result.output + str(result.exception)
    assert says in message
    assert getattr(result.exception, "exit_code", result.exit_code) == 2
    assert not (tmp_path / "out").exists()


def test_an_undescribed_architecture_is_refused(tmp_path):
    _, folder = tiny.make("llama", tmp_path / "model")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "cohere"}
    (folder / "config.json").write_text(json.dumps(values))
    result = CliRunner().invoke(cli, ["prune", str(folder), "--layers", "1", "-o", str(tmp_path / "out")])
    assert "nobody described the architecture 'cohere'" in str(result.exception)


def test_a_dry_run_plans_without_measuring(tmp_path):
    words = ["prune", "--tier", "nano", "--dry-run", "--json", "-o", str(tmp_path / "out")]
    plan = json.loads(CliRunner().invoke(cli, words).stdout)
    assert not (tmp_path / "out").exists()
    words = ["prune", "--tier", "nano", "--importance", "weights", "--layer-choice", "last", "--json"]
    done = json.loads(CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "out")]).stdout)
    assert plan["artifacts"][0]["totals"] == done["artifacts"][0]["totals"]
    checkpoint = loaders.load(tmp_path / "out" / "safetensors")
    assert checkpoint.config["gpt54_convert"]["pruned"]["layers_kept"] == {
        "encoder_layers": "0",
        "layers": "0",
    }


def test_what_the_export_refuses_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    """Qwen 2 in GGUF wants heads × head size = width; a name is taken; a container is unknown."""
    from gpt54_convert import pipeline
    from gpt54_convert.core.report import Report
    from gpt54_convert.errors import ConvertError
    from gpt54_convert.recipe import Convert, Export, Recipe

    monkeypatch.setitem(sys.modules, "gpt54_convert.prune.observe", None)
    _, folder = tiny.make("qwen2")
    (tmp_path / "taken" / "safetensors").mkdir(parents=True)
    for output, container, says in (
        ("new", "gguf", "heads × head_dim = hidden_size"),
        ("new", "zip", "unknown container 'zip'"),
        ("taken", "safetensors", "exists"),
    ):
        export = Export(output=tmp_path / output, to=(container,))
        with pytest.raises(ConvertError, match=says):
            pipeline.run(Recipe(folder, Convert(), export, (Prune(width=48, layers=1),)), Report())
    assert not (tmp_path / "new").exists()


def test_every_pass_can_be_outlined():
    """`--dry-run` and early refusal need the shapes and types that each pass will give."""
    from gpt54_convert.recipe_file import PASSES, pass_class

    assert all(callable(getattr(pass_class(name), "outline", None)) for name in PASSES)


def test_an_outline_declares_what_comes_out(tmp_path):
    from gpt54_convert.core.passes import Context
    from gpt54_convert.core.report import Report
    from gpt54_convert.transforms.smooth import Smooth

    _, folder = tiny.make("llama", dtype="bfloat16")
    checkpoint = loaders.load(folder)
    for step in (Prune(layers=1, ffn=64, width=48, importance="weights", layer_choice="even"), Smooth()):
        made, planned = step.apply(checkpoint, Context(Report(), tmp_path, 1)), step.outline(checkpoint)
        assert {n: (t.shape, t.dtype) for n, t in made.tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in planned.tensors.items()
        }
