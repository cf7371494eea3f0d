"""Maps from teachers to students: what they say, what they make, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import archs, loaders
from gpt54_convert.cli import cli
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.distill import choice, mapping
from gpt54_convert.distill.options import MapOptions
from gpt54_convert.distill.propose import propose
from gpt54_convert.distill.student import student
from gpt54_convert.errors import ConvertError, InputError, UsageError
from gpt54_convert.prune.step import Prune


def run(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if code is None:
        assert isinstance(result.exception, ConvertError), result.output
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def config_file(folder, path, **changes):
    """The config.json of a folder with other values, without a tokenizer beside it."""
    content = json.loads((folder / "config.json").read_text())
    path.write_text(json.dumps({**content, **changes}))
    return path


def proposed(folder, tmp_path, **options):
    teacher = loaders.load(folder)
    return teacher, propose(teacher, MapOptions(**options), Context(Report(), tmp_path), folder)


def values(tensor):
    return tensor.float_rows(0, tensor.row_count).reshape(tensor.shape)


@pytest.mark.parametrize(
    "text",
    ["0-31, 40, 50", "0-254:2", "0-3+4-7, 8+9+10", "0-7, pad*64", "5", "0-6:3, 9, 12-42:6, 3", "2+9, pad, 4"],
)
def test_a_choice_is_its_text(text):
    found = choice.parse(text, "here")
    assert np.array_equal(choice.parse(str(found), "here").members, found.members)


def test_what_a_choice_means():
    found = choice.parse("0-2+10-12, 7, pad*2, 20-30:5", "here").members.tolist()
    assert found == [[0, 10], [1, 11], [2, 12], [7, -1], [-1, -1], [-1, -1], [20, -1], [25, -1], [30, -1]]


def test_the_choice_of_a_product_counts_the_inner_part_fastest():
    outer, inner = choice.parse("2, 0+1", "x"), choice.parse("0, 3", "x")
    assert outer.times(inner, 4).members.tolist() == [[8, -1], [11, -1], [0, 4], [3, 7]]


@pytest.mark.parametrize("text", ["", "a", "3-1", "1+2-3", "-4", "1.5", "pad*x", "0-9:0"])
def test_a_line_that_means_nothing_is_refused(text):
    with pytest.raises(InputError, match="here"):
        choice.parse(text, "here")


@pytest.mark.parametrize("variant", ["gpt54", "llama-tied", "gpt2", "bert-mlm", "gemma3", "qwen3"])
def test_mapping_a_teacher_onto_itself_is_the_identity(variant, tmp_path):
    """Through the files: the very bytes that `convert` writes."""
    _, folder = tiny.make(variant)
    output = run("distill", "map", "--teacher", folder, "--student", folder, "-o", tmp_path / "map.toml")
    assert "[axes]" not in (tmp_path / "map.toml").read_text() and "embed" in output
    run("distill", "init", "--map", tmp_path / "map.toml", "-o", tmp_path / "student")
    run("convert", folder, "--to", "safetensors", "-o", tmp_path / "plain")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        files = [tmp_path / where / "safetensors" / name for where in ("student", "plain")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize("variant", ["gpt54", "llama", "gpt2", "bert", "qwen2-tied"])
def test_a_map_says_what_pruning_does(variant, tmp_path):
    """The same choices, written down: the same weights, also after the map went through its file."""
    _, folder = tiny.make(variant)
    teacher, plan = proposed(folder, tmp_path, tier="nano")
    pruned = Prune(tier="nano", layer_choice="even", importance="weights").apply(
        teacher, Context(Report(), tmp_path)
    )
    (tmp_path / "map.toml").write_text(mapping.dumps(plan))
    made = student(teacher, mapping.read(tmp_path / "map.toml"))
    assert made.tensors.keys() == pruned.tensors.keys()
    for name, tensor in made.tensors.items():
        assert tensor.shape == pruned.tensors[name].shape, name
        assert np.allclose(values(tensor), values(pruned.tensors[name]), rtol=1e-5, atol=0), name
    sizes = archs.by_name(teacher.architecture).sizes
    assert sizes(made.config) == sizes(pruned.config)


def test_means_against_a_plain_loop(tmp_path):
    """Averaged layers and channels: what is written is averaged, what is read is added up."""
    model, folder = tiny.make("llama", num_hidden_layers=4)
    path = config_file(folder, tmp_path / "c.json", num_hidden_layers=2, hidden_size=32, intermediate_size=48)
    _, plan = proposed(folder, tmp_path, student=path, layers="mean", channels="mean")
    made = student(loaders.load(folder), plan).tensors
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for layer in range(2):
        up, down = (
            np.mean([state[f"model.layers.{2 * layer + i}.mlp.{part}.weight"] for i in (0, 1)], 0)
            for part in ("up_proj", "down_proj")
        )
        up_expected = np.zeros((48, 32))
        down_expected = np.zeros((32, 48))
        for row in range(48):
            for column in range(32):
                up_expected[row, column] = np.mean(
                    [up[2 * row + i, 2 * column] + up[2 * row + i, 2 * column + 1] for i in (0, 1)]
                )
                down_expected[column, row] = np.mean(
                    [down[2 * column + i, 2 * row] + down[2 * column + i, 2 * row + 1] for i in (0, 1)]
                )
        assert np.allclose(values(made[f"model.layers.{layer}.mlp.up_proj.weight"]), up_expected, atol=1e-6)
        assert np.allclose(
            values(made[f"model.layers.{layer}.mlp.down_proj.weight"]), down_expected, atol=1e-6
        )
    embed = state["model.embed_tokens.weight"]
    assert np.allclose(
        values(made["model.embed_tokens.weight"]), (embed[:, ::2] + embed[:, 1::2]) / 2, atol=1e-6
    )


def test_layers_and_heads_that_do_nothing_can_go(tmp_path):
    """A teacher whose other parts are zero answers as its student does, in transformers."""
    import torch
    import transformers

    model, folder = tiny.make("llama", tmp_path / "teacher", num_hidden_layers=3)
    with torch.no_grad():
        middle = model.model.layers[1]
        middle.self_attn.o_proj.weight.zero_()
        middle.mlp.down_proj.weight.zero_()
        for layer in (0, 2):  # the second key and the heads that share it, and the last ffn channels
            model.model.layers[layer].self_attn.o_proj.weight[:, 48:] = 0
            model.model.layers[layer].mlp.down_proj.weight[:, 64:] = 0
    model.save_pretrained(folder)
    path = config_file(
        folder,
        tmp_path / "c.json",
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
    )
    run(
        *("distill", "map", "--teacher", folder, "--student", path),
        *("--layers", "even", "--channels", "first", "-o", tmp_path / "m"),
    )
    run("distill", "init", "--map", tmp_path / "m", "-o", tmp_path / "student")
    small = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "student/safetensors", attn_implementation="eager"
    )
    ids = torch.arange(5, 45)[None]
    assert small.num_parameters() < model.num_parameters()
    assert torch.allclose(small(ids).logits, model(ids).logits, atol=1e-4)


def doubled(folder, goal):
    """A teacher whose second half of channels repeats the first, up to gains of its norms."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[32:] = parameter[:32]
            elif name.endswith("embed_tokens.weight"):
                parameter[:, 32:] = parameter[:, :32]
    model.save_pretrained(goal)
    return model


def test_least_squares_makes_up_for_channels_that_others_tell(tmp_path):
    import torch
    import transformers

    _, folder = tiny.make("llama")
    model = doubled(folder, tmp_path / "teacher")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "teacher")
    path = config_file(folder, tmp_path / "c.json", hidden_size=32)
    ids = torch.arange(5, 45)[None]
    expected = model(ids).logits.detach()
    errors = {}
    for how in ("copy", "least-squares"):
        words = ("--channels", "first", "--read", how, "-o", tmp_path / f"{how}.toml")
        run("distill", "map", "--teacher", tmp_path / "teacher", "--student", path, *words)
        run("distill", "init", "--map", tmp_path / f"{how}.toml", "-o", tmp_path / how)
        small = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / how / "safetensors", attn_implementation="eager"
        )
        errors[how] = float((small(ids).logits - expected).abs().max().detach() / expected.std())
    assert errors["least-squares"] < 1e-3
    assert errors["copy"] > 0.3


def test_padding_is_reconciled(tmp_path):
    """More rows: the mean of all; fewer: only rows that no token uses may go."""
    _, folder = tiny.make("gemma3-padded")
    content = json.loads((folder / "config.json").read_text())
    vocab = content["vocab_size"]
    teacher, plan = proposed(
        folder, tmp_path, student=config_file(folder, tmp_path / "a.json", vocab_size=vocab + 24)
    )
    wide = values(student(teacher, plan).tensors["model.embed_tokens.weight"])
    own = values(teacher.tensors["model.embed_tokens.weight"])
    assert np.array_equal(wide[:vocab], own) and "pad*24" in str(plan.axes["vocab"])
    assert np.allclose(wide[vocab:], own.mean(0), atol=1e-5)
    teacher, plan = proposed(
        folder, tmp_path, student=config_file(folder, tmp_path / "b.json", vocab_size=vocab - 8)
    )
    assert np.array_equal(values(student(teacher, plan).tensors["model.embed_tokens.weight"]), own[:-8])


def test_an_edited_map_is_obeyed(tmp_path):
    _, folder = tiny.make("llama")
    run("distill", "map", "--teacher", folder, "--student", folder, "-o", tmp_path / "m.toml")
    text = (tmp_path / "m.toml").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    text += '[layers]\nlayers = "0+1"\n[scale]\n"norm.final" = 2.0\n'
    text += '[[tensor]]\nname = "lm_head.weight"\nfrom = "model.embed_tokens.weight"\nscale = 0.5\n'
    (tmp_path / "m.toml").write_text(text)
    teacher = loaders.load(folder)
    made = student(teacher, mapping.read(tmp_path / "m.toml")).tensors
    old = {name: values(tensor) for name, tensor in teacher.tensors.items()}
    query = "model.layers.{}.self_attn.q_proj.weight"
    assert np.allclose(values(made[query.format(0)]), (old[query.format(0)] + old[query.format(1)]) / 2)
    assert np.allclose(values(made["model.norm.weight"]), 2 * old["model.norm.weight"])
    assert np.allclose(values(made["lm_head.weight"]), old["model.embed_tokens.weight"] / 2)
    assert query.format(1) not in made
    assert "layer 0←0+1" in run("distill", "show", tmp_path / "m.toml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "larger than its teacher: layers 3 against 2"),
        ({"hidden_size": 128}, "larger than its teacher: width 128"),
        ({"vocab_size": 20}, "vocabularies do not match"),
        ({"vocab_size": 90000}, "vocabularies do not match"),
        ({"num_attention_heads": 3}, "3 heads do not divide into 2 KV heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 1}, "3 heads do not divide into 1 KV heads"),
        ({"model_type": "mamba"}, "nobody described the architecture 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_student_that_cannot_be_is_refused_in_one_sentence(changes, words, tmp_path):
    _, folder = tiny.make("llama")
    path = config_file(folder, tmp_path / "c.json", **changes)
    error = run("distill", "map", "--teacher", folder, "--student", path, "-o", tmp_path / "m", code=None)
    assert words in error and "\n" not in error
    assert not (tmp_path / "m").exists()


def test_widths_that_do_not_divide_into_heads_are_refused(tmp_path):
    _, folder = tiny.make("gpt2")
    path = config_file(folder, tmp_path / "c.json", n_embd=40)
    with pytest.raises(UsageError, match="width 40 does not divide into its 3 heads"):
        proposed(folder, tmp_path, student=path)


def test_another_tokenizer_is_refused(tmp_path):
    _, folder = tiny.make("llama")
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    first, second = list(content["model"]["vocab"])[20:22]
    ids = content["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="must share its teacher's tokenizer"):
        proposed(folder, tmp_path, student=tmp_path / "other")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('schema = "gpt54-convert/map/1"', "", "is no map"),
        ("[axes]", "[axis]", "unknown key 'axis'"),
        ('layers = "0"', 'layers = "7"', "no counterpart"),
        ('layers = "0"', 'layers = "0, 1"', "[layers] layers has 2 entries"),
        ('layers = "0"', "layers = 0", "must be text"),
        ('width = "', 'width = "900, ', "[axes] width"),
        ("[axes]", '[read]\nwidth = "guess"\n[axes]', "is not copy or least-squares"),
        ("[axes]", '[[tensor]]\nname = "x"\nfrom = "y"\n[axes]', "made of y, which the teacher has not"),
        ("[axes]", '[[tensor]]\nname = "x"\nfro = "y"\n[axes]', "unknown key 'fro'"),
        ("[axes]", "[axes", "is not TOML"),
    ],
)
def test_a_broken_map_is_refused_in_one_sentence(old, new, words, tmp_path):
    _, folder = tiny.make("llama")
    path = config_file(folder, tmp_path / "c.json", num_hidden_layers=1, hidden_size=32)
    _, plan = proposed(folder, tmp_path, student=path, channels="first")
    text = mapping.dumps(plan)
    assert old in text
    (tmp_path / "m.toml").write_text(text.replace(old, new, 1))
    error = run("distill", "init", "--map", tmp_path / "m.toml", "-o", tmp_path / "out", code=None)
    assert words in error
    assert not (tmp_path / "out").exists()


def test_maps_are_not_overwritten(tmp_path):
    run("distill", "map", "--tier", "nano", "-o", tmp_path / "m.toml")
    assert "exists; name another file with -o" in run(
        "distill", "map", "--tier", "nano", "-o", tmp_path / "m.toml", code=None
    )
    assert "give the student's shape" in run("distill", "map", "-o", tmp_path / "n.toml", code=None)


@pytest.mark.parametrize("variant", ["bert", "bert-mlm"])
def test_a_bert_becomes_a_distilbert_that_answers_alike(variant, tmp_path):
    """All layers, other names, no token types: the same hidden states in transformers, for one segment."""
    import torch
    import transformers

    model, folder = tiny.make(variant)
    wide = {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128}
    config = transformers.DistilBertConfig(vocab_size=model.config.vocab_size, **wide)
    head = ["DistilBertForMaskedLM" if variant == "bert-mlm" else "DistilBertModel"]
    (tmp_path / "c.json").write_text(json.dumps({**config.to_dict(), "architectures": head}))
    run("distill", "map", "--teacher", folder, "--student", tmp_path / "c.json", "-o", tmp_path / "m.toml")
    assert "token_type_embeddings.weight[0]" in (tmp_path / "m.toml").read_text()
    run("distill", "init", "--map", tmp_path / "m.toml", "-o", tmp_path / "student")
    small = getattr(transformers, head[0]).from_pretrained(
        tmp_path / "student/safetensors", attn_implementation="eager"
    )
    ids = torch.arange(5, 45)[None]
    assert torch.allclose(small(ids)[0], model(ids)[0], atol=1e-4)
    run("inspect", tmp_path / "student/safetensors")
    assert "GGUF has no architecture for a distilbert" in run(
        "convert", tmp_path / "student/safetensors", "--to", "gguf", "-o", tmp_path / "g", code=None
    )


def test_half_of_a_gpt2_is_a_distilgpt2(tmp_path):
    """Every second layer, as DistilGPT2 began; the same names."""
    _, folder = tiny.make("gpt2", n_layer=4)
    path = config_file(folder, tmp_path / "c.json", n_layer=2)
    teacher, plan = proposed(folder, tmp_path, student=path)
    made, old = student(teacher, plan).tensors, teacher.tensors
    for layer, source in ((0, 0), (1, 3)):
        for part in ("attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_proj.weight", "ln_1.weight"):
            name = "transformer.h.{}." + part
            assert np.array_equal(values(made[name.format(layer)]), values(old[name.format(source)]))
