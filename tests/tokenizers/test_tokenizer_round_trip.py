"""HF -> GGUF -> HF gives equal ids, for every kind of tokenizer, by way of a real GGUF file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import vocab_files
from peers import llama_vocab
from tokenizer_texts import SENTENCES, plain_for_bert, texts
from tokenizers import Tokenizer

from gpt54_convert.tokenizers import from_gguf, to_gguf
from gpt54_convert.tokenizers.keys import FRAME_KEY

TINY = {
    "gpt2": "gpt-2",
    "llama3": "dbrx",
    "qwen2": "qwen2",
    "gemma": "default",
    "t5": "default",
    "bert": "default",
}


def tiny_files(kind: str, folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = tiny_tokenizers.write(kind, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, config


def ids(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return found


def load(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def differences(one: Tokenizer, other: Tokenizer, special: tuple[str, ...] = ()) -> list[str]:
    return [text for text in texts(300, special) if ids(one, text) != ids(other, text)]


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("with_frame", [True, False], ids=["ours", "foreign"])
def test_ids_survive_the_round_trip(kind: str, with_frame: bool, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    files, config = tiny_files(kind, tmp_path / "hf")
    keys = to_gguf(files, config, gguf_architecture="llama", vocab_size=config["vocab_size"] + 3)
    read = vocab_files.read(vocab_files.write(tmp_path / "vocab.gguf", keys))
    assert read["tokenizer.ggml.pre"] == TINY[kind]
    assert read["tokenizer.ggml.tokens"][-1] == f"[PAD{config['vocab_size'] + 2}]"
    if not with_frame:
        del read[FRAME_KEY]
    before, after = load(files), load(from_gguf(read, config=config))
    special = tuple(token["content"] for token in json.loads(files["tokenizer.json"])["added_tokens"])
    odd = differences(before, after, special)
    if kind == "t5" and not with_frame:
        odd = [text for text in odd if comparable(kind, text)]
    if kind == "qwen2" and not with_frame:
        odd = [text for text in odd if text.isascii()]  # the real qwen2 has NFC, this one has no normalizer
    assert odd == []


@pytest.mark.parametrize("kind", TINY)
def test_the_rebuilt_files_load_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "hf").mkdir()
    (tmp_path / "new").mkdir()
    files, config = tiny_files(kind, tmp_path / "hf")
    keys = to_gguf(files, config, gguf_architecture="llama", vocab_size=config["vocab_size"])
    rebuilt = from_gguf({key.key: key.value for key in keys}, config=config)
    for name, content in rebuilt.items():
        (tmp_path / "new" / name).write_bytes(content)
    assert json.loads(rebuilt["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"
    old = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in SENTENCES:
        assert new(text)["input_ids"] == old(text)["input_ids"], text
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if kind != "bert" and getattr(old, role) is not None:
            assert getattr(new, role) == getattr(old, role)


@pytest.mark.llama_cpp
@pytest.mark.parametrize("kind", TINY)
def test_llama_cpp_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    if not llama_vocab.available():
        pytest.skip(llama_vocab.MISSING)
    (tmp_path / "hf").mkdir()
    files, config = tiny_files(kind, tmp_path / "hf")
    keys = to_gguf(files, config, gguf_architecture="llama", vocab_size=config["vocab_size"] + 3)
    tokenizer = load(files)
    special = tuple(token["content"] for token in json.loads(files["tokenizer.json"])["added_tokens"])
    with llama_vocab.LlamaVocab(vocab_files.write(tmp_path / "vocab.gguf", keys)) as vocab:
        checked = [text for text in texts(300, special) if comparable(kind, text)]
        odd = [text for text in checked if vocab.encode(text, add_special=True) != ids(tokenizer, text)]
    assert len(checked) > 100
    assert odd == []


def comparable(kind: str, text: str) -> bool:
    """False for texts where llama.cpp is known to differ, or GGUF cannot say what the tokenizer does."""
    if kind == "bert":
        return plain_for_bert(text)
    if kind == "t5":  # the tiny T5 takes every white space for a space, for which a charsmap would be needed
        return not any(char.isspace() for char in text.replace(" ", ""))
    return True


def test_sentencepiece_bpe(tmp_path: Path) -> None:
    model, processor = train_sentencepiece("bpe")
    keys = to_gguf(
        {"tokenizer.model": model}, {}, gguf_architecture="llama", vocab_size=processor.vocab_size()
    )
    read = {key.key: key.value for key in keys}
    assert (read["tokenizer.ggml.model"], read["tokenizer.ggml.add_bos_token"]) == ("llama", True)
    tokenizer = load(from_gguf(read, config={}))
    odd = [text for text in texts(300) if ids(tokenizer, text, False) != processor.encode(text)]
    assert [text for text in odd if text.strip("\0")] == []


def test_sentencepiece_unigram(tmp_path: Path) -> None:
    model, processor = train_sentencepiece("unigram")
    size = processor.vocab_size()
    files = {
        "spiece.model": model,
        "tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer", "extra_ids": 4}',
    }
    keys = to_gguf(files, {}, gguf_architecture="t5", vocab_size=size + 4)
    read = {key.key: key.value for key in keys}
    assert read["tokenizer.ggml.model"] == "t5"
    assert read["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert read["tokenizer.ggml.tokens"][size] == "<extra_id_3>"
    tokenizer = load(from_gguf(read, config={}))
    odd = [text for text in texts(300) if not as_good(processor, ids(tokenizer, text, False), text)]
    assert odd == []
    assert ids(tokenizer, "the", True)[-1] == processor.eos_id()


@pytest.mark.llama_cpp
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_llama_cpp_agrees_with_sentencepiece(kind: str, tmp_path: Path) -> None:
    if not llama_vocab.available():
        pytest.skip(llama_vocab.MISSING)
    model, processor = train_sentencepiece(kind)
    keys = to_gguf({"spiece.model": model}, {}, gguf_architecture="t5", vocab_size=processor.vocab_size())
    with llama_vocab.LlamaVocab(vocab_files.write(tmp_path / "vocab.gguf", keys)) as vocab:
        odd = [text for text in texts(300) if not as_good(processor, vocab.encode(text), text)]
        tokenizer = load(from_gguf({key.key: key.value for key in keys}, config={}))
        assert [text for text in texts(300) if vocab.encode(text) != ids(tokenizer, text, False)] == []
    assert odd == []


def as_good(processor: Any, found: list[int], text: str) -> bool:
    """True for sentencepiece's own ids, or others of the same likelihood (`!` `!!` for `!!` `!`)."""
    wanted = processor.encode(text)
    if found == wanted:
        return True
    return sorted(found) == sorted(wanted) and processor.decode(found) == processor.decode(wanted)


def train_sentencepiece(kind: str) -> tuple[bytes, Any]:
    """A small model by sentencepiece's own trainer, as Llama 2 (bpe) or T5 (unigram) have it."""
    spm = pytest.importorskip("sentencepiece")
    as_llama = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, *tiny_tokenizers.TEXT.split(". ") * 9]),
        model_writer=model,
        model_type=kind,
        vocab_size=1500,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **(as_llama if kind == "bpe" else {}),
    )
    return model.getvalue(), spm.SentencePieceProcessor(model_proto=model.getvalue())


def test_old_byte_level_files(tmp_path: Path) -> None:
    files, config = tiny_files("gpt2", tmp_path)
    model = json.loads(files["tokenizer.json"])["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    old = {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": merges.encode()}
    keys = {
        key.key: key.value
        for key in to_gguf(old, {}, gguf_architecture="gpt2", vocab_size=config["vocab_size"])
    }
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.eos_token_id"] == config["eos_token_id"]
    assert differences(load(files), load(from_gguf(keys, config={})), ("<|endoftext|>",)) == []


def test_old_vocab_txt(tmp_path: Path) -> None:
    files, config = tiny_files("bert", tmp_path)
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    old = {"vocab.txt": "\n".join(sorted(vocabulary, key=lambda token: vocabulary[token])).encode()}
    keys = to_gguf(old, {}, gguf_architecture="bert", vocab_size=config["vocab_size"])
    assert differences(load(files), load(from_gguf({key.key: key.value for key in keys}, config={}))) == []
