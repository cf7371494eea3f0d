"""Damaged and hostile tokenizers: one sentence that names file and place; and what GGUF cannot say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers

from gpt54_convert.errors import ConvertError, InputError, UnsupportedError, UsageError
from gpt54_convert.tokenizers import from_gguf, to_gguf
from gpt54_convert.tokenizers.keys import FRAME_KEY
from gpt54_convert.tokenizers.merges import merges_from_scores, same_by_scores, scores_from_merges
from gpt54_convert.tokenizers.pre_names import KNOWN_NAMES, ROWS
from gpt54_convert.tokenizers.pretokenizers import rows_for, same_spelling, steps_of, to_json
from gpt54_convert.tokenizers.sentencepiece import read_sentencepiece

Json = dict[str, Any]


def tiny(kind: str, folder: Path) -> tuple[Json, int]:
    config = tiny_tokenizers.write(kind, folder)
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config["vocab_size"]


def convert(tokenizer: Json | bytes, size: int = 100_000, **more: Any) -> dict[str, Any]:
    content = tokenizer if isinstance(tokenizer, bytes) else json.dumps(tokenizer).encode()
    files = {"tokenizer.json": content, **more.pop("files", {})}
    keys = to_gguf(files, {}, gguf_architecture="llama", vocab_size=size, **more)
    return {key.key: key.value for key in keys}


def one_sentence(error: ConvertError) -> str:
    text = str(error)
    assert "\n" not in text
    assert ". " not in text.replace(", ", "")
    assert len(text) < 700
    return text


def merge_unknown(t: Json) -> None:
    t["model"]["merges"].append(["Q", "zzz"])


def merge_broken(t: Json) -> None:
    t["model"]["merges"].append("nospace")


def same_id(t: Json) -> None:
    first, second, *_ = t["model"]["vocab"]
    t["model"]["vocab"][second] = t["model"]["vocab"][first]


def negative_id(t: Json) -> None:
    t["model"]["vocab"][next(iter(t["model"]["vocab"]))] = -1


def huge_id(t: Json) -> None:
    t["model"]["vocab"]["huge"] = 10**15


def true_id(t: Json) -> None:
    t["model"]["vocab"]["true"] = True


def added_elsewhere(t: Json) -> None:
    t["added_tokens"][0]["id"] += 1


def added_nameless(t: Json) -> None:
    del t["added_tokens"][0]["content"]


def no_model(t: Json) -> None:
    t["model"] = [1]


def no_vocab(t: Json) -> None:
    t["model"]["vocab"] = {}


def bad_template(t: Json) -> None:
    t["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x"}}],
        "pair": [],
    }


def bad_split(t: Json) -> None:
    t["pre_tokenizer"] = {"type": "Split", "behavior": "Isolated"}


DAMAGE = (
    *(merge_unknown, merge_broken, same_id, negative_id, huge_id, true_id, added_elsewhere, added_nameless),
    *(no_model, no_vocab, bad_template, bad_split),
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tokenizer_json_is_named(damage: Callable[[Json], None], tmp_path: Path) -> None:
    tokenizer, _ = tiny("gpt2", tmp_path)
    damage(tokenizer)
    with pytest.raises(InputError) as caught:
        convert(tokenizer)
    assert "tokenizer.json" in one_sentence(caught.value)


BROKEN = {
    "empty": b"",
    "cut": b"{",
    "list": b"[1]",
    "utf16": b"\xff\xfe{}",
    "nan": b'{"model": NaN}',
    "deep": b"[" * 100_000,
    "digits": b'{"a":' + b"9" * 9000 + b"}",
    "nothing": b"{}",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_json_is_named(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        convert(content)
    assert "tokenizer.json" in one_sentence(caught.value)


def test_side_files_are_checked_too(tmp_path: Path) -> None:
    tokenizer, _ = tiny("gpt2", tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        with pytest.raises(InputError, match=name):
            convert(tokenizer, files={name: b"{"})
    with pytest.raises(InputError, match=r"chat_template\.jinja"):
        convert(tokenizer, files={"chat_template.jinja": b"\xff"})
    with pytest.raises(InputError, match="chat_template"):
        convert(tokenizer, files={"tokenizer_config.json": b'{"chat_template": [1]}'})


def test_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    tokenizer, size = tiny("gpt2", tmp_path)
    with pytest.raises(InputError, match=f"only {size - 1} rows"):
        convert(tokenizer, size - 1)


def test_no_files() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        to_gguf({}, {}, gguf_architecture="llama", vocab_size=1)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\x08\x01", b"\xff" * 20]
)
def test_a_damaged_sentencepiece_model(content: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.model is no sentencepiece model"):
        read_sentencepiece(content, "x.model")


def test_an_unknown_regex_is_told(tmp_path: Path) -> None:
    tokenizer, size = tiny("qwen2", tmp_path)
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[0-7]+|."
    with pytest.raises(UnsupportedError) as caught:
        convert(tokenizer, size)
    assert "[0-7]+|." in one_sentence(caught.value)
    assert "--pre NAME" in str(caught.value)
    assert convert(tokenizer, size, pre="falcon")["tokenizer.ggml.pre"] == "falcon"
    with pytest.raises(UsageError, match="did you mean qwen2 or"):
        convert(tokenizer, size, pre="qwen-2")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused(part: str, value: Json, tmp_path: Path) -> None:
    tokenizer, size = tiny("gpt2", tmp_path)
    tokenizer[part] = value
    with pytest.raises(UnsupportedError) as caught:
        convert(tokenizer, size)
    one_sentence(caught.value)


def test_ignore_merges_counts_only_where_it_matters(tmp_path: Path) -> None:
    """A tokenizer of Llama 3's structure is llama-bpe with ignore_merges and dbrx without."""
    tokenizer, size = tiny("llama3", tmp_path)
    assert convert(tokenizer, size)["tokenizer.ggml.pre"] == "dbrx"
    tokenizer["model"]["ignore_merges"] = True
    assert convert(tokenizer, size)["tokenizer.ggml.pre"] == "llama-bpe"
    tokenizer, size = tiny("gpt2", tmp_path)
    tokenizer["model"]["ignore_merges"] = True  # every token is what its merges make: no difference
    assert convert(tokenizer, size)["tokenizer.ggml.pre"] == "gpt-2"
    tokenizer["model"]["vocab"]["zqzqzq"] = size
    with pytest.raises(UnsupportedError, match="zqzqzq"):
        convert(tokenizer, size + 1)


def test_merges_that_are_no_scores(tmp_path: Path) -> None:
    """A sentencepiece-like BPE whose merges are not all splits: by merges where GGUF can, else refused."""
    tokenizer, size = tiny("gemma", tmp_path)
    merges = tokenizer["model"]["merges"]
    whole = {"".join(pair) for pair in merges}
    tokenizer["model"]["merges"] = [
        next(p for p in merges if "".join(p) == token) for token in dict.fromkeys(whole)
    ]
    keys = convert(tokenizer, size)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "sarvam-moe")
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, tokenizer["normalizer"]],
    }
    with pytest.raises(UnsupportedError, match="no scores can stand for"):
        convert(tokenizer, size)
    assert convert(tokenizer, size, pre="default")["tokenizer.ggml.model"] == "llama"


def test_the_table_is_read_both_ways() -> None:
    """Every row is found again by its own structure, and every name stands in one row."""
    names = [name for row in ROWS for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    assert set(names) <= KNOWN_NAMES
    for row in ROWS:
        steps = steps_of(to_json(row.steps), "tokenizer.json")
        assert row in rows_for(steps), row.name
        chosen = [other for other in rows_for(steps) if not other.only_restored]
        assert len({(other.ignore_merges, other.normalizer) for other in chosen}) == len(chosen), row.name


def test_spellings_of_one_regex() -> None:
    assert same_spelling("[\r\n]+|\\p{N}{1}") == r"[\r\n]+|\p{N}"


def gguf(**changes: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
    }
    for name, value in changes.items():
        keys["tokenizer.ggml." + name] = value
    return keys


def test_the_small_example_is_sound() -> None:
    assert json.loads(from_gguf(gguf(), config={})["tokenizer.json"])["model"]["vocab"]["ab"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": "abc"},
        {"tokens": ["a", "a", "ab", "x"]},
        {"tokens": ["a", 1, "ab", "x"]},
        {"token_type": [1]},
        {"token_type": ["x", 1, 1, 1]},
        {"scores": [0.0, float("nan"), 0.0, 0.0]},
        {"merges": None},
        {"merges": ["a c"]},
        {"merges": ["ab"]},
        {"merges": [["a"]]},
        {"eos_token_id": 4},
        {"eos_token_id": -1},
        {"eos_token_id": True},
        {"add_bos_token": "yes"},
        {"model": None},
        {"model": "rwkv"},
        {"pre": "kimi-k2"},
        {"pre": "no-such-name"},
        {"model": "t5", "unknown_token_id": 4000},
        {"model": "t5", "precompiled_charsmap": ["x"]},
    ],
)
def test_damaged_gguf_keys_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ConvertError) as caught:
        from_gguf(gguf(**changes), config={})
    assert "tokenizer.ggml" in one_sentence(caught.value)


@pytest.mark.parametrize(
    "frame", ["{", "[]", '{"model": {}}', 7, '{"added_tokens": [1], "model": {"type": "BPE"}}']
)
def test_a_damaged_frame_is_named(frame: Any) -> None:
    with pytest.raises(InputError, match=FRAME_KEY):
        from_gguf({**gguf(), FRAME_KEY: frame}, config={})


def test_long_tokens_take_no_time() -> None:
    """A vocabulary of a few tokens of a megabyte must not be cut at every character."""
    scores = {"a" * 1_000_000: 1.0, "a" * 500_000: 2.0, "a" * 3: 3.0, "a": 0.0}
    assert merges_from_scores(scores) == [("a" * 500_000, "a" * 500_000)]


def test_chat_templates_in_all_forms(tmp_path: Path) -> None:
    tokenizer, size = tiny("gpt2", tmp_path)
    named = json.dumps(
        {"chat_template": [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]}
    )
    keys = convert(tokenizer, size, files={"tokenizer_config.json": named.encode()})
    assert keys["tokenizer.chat_template"] == "D"
    assert keys["tokenizer.chat_templates"] == ["rag"]
    assert keys["tokenizer.chat_template.rag"] == "R"
    written = json.loads(from_gguf(keys, config={})["tokenizer_config.json"])
    assert written["chat_template"] == json.loads(named)["chat_template"]
    files = {"tokenizer_config.json": b'{"chat_template": "old"}', "chat_template.jinja": b"new"}
    keys = convert(tokenizer, size, files=files)
    assert keys["tokenizer.chat_template"] == "new"
    assert from_gguf(keys, config={})["chat_template.jinja"] == b"new"


def test_every_pre_tokenizer_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    assert [row.name for row in ROWS if f"`{row.name}`" not in text] == []


def test_runs_of_one_character_may_be_mixed() -> None:
    """Gemma's merges of runs of spaces are ranked by their left half, not by the run they make."""
    runs = [("aaa", "a"), ("aa", "aa"), ("aa", "a"), ("a", "aaa"), ("a", "aa"), ("a", "a")]
    scores = scores_from_merges(["a", "aa", "aaa", "aaaa"], runs)
    assert same_by_scores(scores, runs) is None
    words = [("ab", "c"), ("b", "cd"), ("a", "bc"), ("bc", "d"), ("b", "c"), ("a", "b"), ("c", "d")]
    scores = scores_from_merges(["a", "b", "c", "d", "ab", "bc", "cd", "abc", "bcd"], words)
    assert same_by_scores(scores, words) is not None
