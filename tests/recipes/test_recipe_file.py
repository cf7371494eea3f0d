"""Recipes as TOML: what is written is read again, and whatever makes no sense is one sentence."""

from pathlib import Path

import pytest

from gpt54_convert import recipe_file
from gpt54_convert.errors import ConvertError, InputError, UsageError
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.stage import Gate

FULL = """
source = "models/a"

[[pass]]
name = "gate"
demand = ["perplexity_ratio<=1.5", "top1>=0.5"]
tokens = 600

[quantize]
bits = 4
keep = ["head=q8_0"]

[export]
to = ["gguf"]
output = "out"
shard-size = "2GB"

[verify]
gate = ["kl_mean<=0.05"]
"""


def written(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_every_table_becomes_its_dataclass(tmp_path):
    found = recipe_file.read(written(tmp_path, FULL))
    assert found == Recipe(
        tmp_path / "models/a",
        Quantize(bits=4, keep=("head=q8_0",)),
        Export(to=("gguf",), output=Path("out"), shard_size="2GB"),
        (Gate(demand=("perplexity_ratio<=1.5", "top1>=0.5"), tokens=600),),
        VerifyOptions(gate=("kl_mean<=0.05",)),
    )


def test_what_is_written_is_read_again(tmp_path):
    found = recipe_file.read(written(tmp_path, FULL))
    assert recipe_file.read(written(tmp_path, recipe_file.dumps(found))) == found


def test_the_shortest_recipe_copies_weights(tmp_path):
    found = recipe_file.read(written(tmp_path, 'source = "a"'))
    assert found.step == Convert() and found.export == Export() and found.passes == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a line like source"),
        ("source = 3", "needs a line like source"),
        ('source = "a"\nquantise = 1', "unknown key 'quantise'; did you mean 'quantize'?"),
        ('source = "a"\n[quantize]\nbit = 4', "[quantize]: unknown key 'bit'; did you mean 'bits'?"),
        ('source = "a"\n[quantize]\nbits = "4"', "[quantize] bits = '4' is not a int"),
        ('source = "a"\n[quantize]\nbits = true', "[quantize] bits = True is not a int"),
        ('source = "a"\n[quantize]\nbits = 7', "[quantize] bits = 7 is not one of"),
        ('source = "a"\n[quantize]\nbits = 4\nscheme = "int4"', "give one of them"),
        ('source = "a"\n[quantize]\nkeep = "head=q8_0"', "is not a list of texts"),
        ('source = "a"\n[quantize]\n[convert]', "both [quantize] and [convert]"),
        ('source = "a"\nquantize = 4', "[quantize] is not a table"),
        ('source = "a"\n[export]\noutput = 4', "is not a path"),
        ('source = "a"\n[pass]\nname = "gate"', "[[pass]] tables"),
        ('source = "a"\n[[pass]]\ndemand = []', "pass 1 needs a name"),
        ('source = "a"\n[[pass]]\nname = "gaet"', "there is no pass 'gaet'"),
        ('source = "a"\n[[pass]]\nname = "gate"', "nothing is demanded"),
        ('source = "a"\n[[pass]]\nname = "gate"\ndemand = ["kl<=x"]', "is no gate"),
        ('source = "a"\n[[pass]]\nname = "gate"\ndemand = ["kl_mean<=1.1*rtn"]', "takes a number"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(text, words, tmp_path):
    with pytest.raises(UsageError) as caught:
        recipe_file.read(written(tmp_path, text))
    assert words in str(caught.value) and "recipe.toml" in str(caught.value)


def test_what_is_no_toml_says_where(tmp_path):
    with pytest.raises(InputError, match="is not TOML"):
        recipe_file.read(written(tmp_path, "source = "))
    with pytest.raises(ConvertError, match="No such file"):
        recipe_file.read(tmp_path / "none.toml")


@pytest.mark.parametrize("name", recipe_file.PASSES)
def test_every_pass_is_a_dataclass_of_options(name):
    import dataclasses

    kind = recipe_file.pass_class(name)
    assert callable(kind.apply) and (kind.__doc__ or "").strip()
    assert all("help" in field.metadata for field in dataclasses.fields(kind))
