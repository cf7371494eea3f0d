"""Pieces of tokenizer.json that are written from GGUF metadata and from old tokenizer files alike."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from gpt54_convert.tokenizers.keys import SPACE
from gpt54_convert.tokenizers.template import write_around

Json = dict[str, Any]
Token = tuple[str, int]

_REPLACE_SPACE: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def added_token(token_id: int, content: str, special: bool) -> Json:
    """An entry of `added_tokens` as a GGUF token type implies it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content, **flags}


def bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], **flags: Any) -> Json:
    """A BPE model; `flags` replace the plain defaults."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
        **flags,
    }


def spaced_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], unknown: str | None, prefix: bool
) -> Json:
    """BPE on text whose spaces are U+2581, with bytes for unknown characters (Llama 2, Mistral, Gemma)."""
    normalizers = [{"type": "Prepend", "prepend": SPACE}, _REPLACE_SPACE]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if prefix else _REPLACE_SPACE,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def unigram(
    vocabulary: Sequence[Sequence[Any]], unknown: int, charsmap: bytes, *, merge_spaces: bool, prefix: bool
) -> Json:
    """A Unigram model with sentencepiece's normalization (T5, XLM-R)."""
    normalizers: list[Json] = []
    if charsmap:
        encoded = base64.b64encode(charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if merge_spaces:
        normalizers += [
            {"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    scheme = "always" if prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False},
    }


def wordpiece(
    vocabulary: Mapping[str, int],
    *,
    unknown: str,
    first: Token | None,
    last: Token | None,
    lowercase: bool,
    strip_accents: bool | None,
) -> Json:
    """A WordPiece model with BERT's normalization and template."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": write_around(first, last, last),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
