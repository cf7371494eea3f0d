"""GGUF metadata -> the tokenizer files of a HF model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers import chat, frame
from gpt54_convert.tokenizers.keys import BYTE_TOKENS, SPACE, TokenType
from gpt54_convert.tokenizers.merges import merges_from_scores, parse_merges
from gpt54_convert.tokenizers.parts import BYTE_LEVEL, added_token, bpe, spaced_bpe, unigram, wordpiece
from gpt54_convert.tokenizers.pretokenizers import row_named, to_json
from gpt54_convert.tokenizers.read_keys import Keys, read_keys, unsupported_model
from gpt54_convert.tokenizers.template import write_around

Json = dict[str, Any]

_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_CLEANING = {"bert"}  # the one family whose decoder is expected to take the spaces before punctuation away


def from_gguf(keys: Mapping[str, Any], *, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer files rebuilt from GGUF metadata: name -> bytes.

    keys: metadata by name, as plain Python values.  config: the model's config.json (only its longest input
    is used).  A file of our own carries what GGUF has no key for (flags of added tokens, the normalizer); for
    any other file the structure behind `tokenizer.ggml.pre` is used, and llama.cpp's defaults.
    """
    read = read_keys(keys)
    build = _MODELS.get(read.model)
    if build is None:
        raise unsupported_model(read.model)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(read),
        **build(read),
    }
    tokenizer = frame.put_into(tokenizer, read)
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": _config(read, config)}
    named = {f"{role}_token": token[0] for role, token in _role_tokens(read).items()}
    if named:
        files["special_tokens_map.json"] = named
    chat_files, in_config = chat.to_files(keys)
    files["tokenizer_config.json"].update(in_config)
    written = {
        name: json.dumps(value, ensure_ascii=False, indent=2).encode() for name, value in files.items()
    }
    return {**written, **chat_files}


def _added_tokens(keys: Keys) -> list[Json]:
    added = []
    for token_id, (token, kind) in enumerate(zip(keys.tokens, keys.types, strict=True)):
        special = kind in _SPECIAL
        if (special or kind == TokenType.USER_DEFINED) and token and not keys.is_filler(token_id):
            added.append({**added_token(token_id, token, special), **_strips(keys, token, special)})
    return added


def _strips(keys: Keys, token: str, special: bool) -> Json:
    """Flags for which GGUF has no key: llama.cpp knows them by the model's name, and so must we."""
    name = str(keys.raw.get("general.name", "")).lower()
    pre = str(keys.raw.get("tokenizer.ggml.pre", ""))
    if "phi-3" in name or "phi3" in name:
        takes_spaces = special or token == "</s>"
        return {"rstrip": takes_spaces and token not in ("<unk>", "<s>", "<|endoftext|>")}
    if pre.startswith("jina-v2") and token == "<mask>":
        return {"lstrip": True}
    return {"lstrip": True} if "modern-bert" in name and token == "[MASK]" else {}


def _vocabulary(keys: Keys) -> dict[str, int]:
    return {token: at for at, token in enumerate(keys.tokens) if not keys.is_filler(at)}


def _merges(keys: Keys, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    return parse_merges(keys.raw.get("tokenizer.ggml.merges"), vocabulary, "tokenizer.ggml.merges")


def _around(keys: Keys, add_bos: bool, add_eos: bool) -> Json | None:
    """The post-processor that adds what the flags say, or what llama.cpp adds where there are none."""
    before = keys.token("bos") if keys.flag("add_bos_token", add_bos) else None
    after = keys.token("eos") if keys.flag("add_eos_token", add_eos) else None
    return write_around(before, after) if before or after else None


def _byte_level(keys: Keys) -> Json:
    row = row_named(str(keys.raw.get("tokenizer.ggml.pre", "default")))
    vocabulary = _vocabulary(keys)
    merges = _merges(keys, vocabulary)
    return {
        "normalizer": {"type": row.normalizer} if row.normalizer else None,
        "pre_tokenizer": to_json(row.steps),
        "post_processor": _around(keys, row.add_bos, False) or {**BYTE_LEVEL, "trim_offsets": False},
        "decoder": BYTE_LEVEL,
        "model": bpe(vocabulary, merges, ignore_merges=row.ignore_merges),
    }


def _sentencepiece(keys: Keys) -> Json:
    mergeable = {
        token: score
        for token, score, kind in zip(keys.tokens, keys.scores, keys.types, strict=True)
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED) and token and token not in BYTE_TOKENS
    }
    return _spaced(keys, merges_from_scores(mergeable), keys.flag("add_space_prefix", True))


def _gemma4(keys: Keys) -> Json:
    return _spaced(keys, _merges(keys, _vocabulary(keys)), prefix=False)


def _spaced(keys: Keys, merges: list[tuple[str, str]], prefix: bool) -> Json:
    unknown = keys.token("unk")
    parts = spaced_bpe(_vocabulary(keys), merges, unknown[0] if unknown else None, prefix)
    return {**parts, "post_processor": _around(keys, True, False)}


def _unigram(keys: Keys) -> Json:
    last = max((at for at in range(len(keys.tokens)) if not keys.is_filler(at)), default=-1)
    if "unk" not in keys.ids:
        raise InputError(
            "tokenizer.ggml.unknown_token_id is missing, which a t5 tokenizer needs; convert again"
        )
    try:
        charsmap = bytes(keys.raw.get("tokenizer.ggml.precompiled_charsmap") or b"")
    except (TypeError, ValueError):
        raise InputError("tokenizer.ggml.precompiled_charsmap holds no bytes; convert again") from None
    # An unknown character costs ten more than the lowest score of all: padding must not set that.
    lowest = min(
        (score for score, kind in zip(keys.scores, keys.types, strict=True) if kind == TokenType.NORMAL),
        default=0.0,
    )
    parts = unigram(
        [[keys.tokens[at], max(keys.scores[at], lowest)] for at in range(last + 1)],
        keys.ids["unk"],
        charsmap,
        merge_spaces=keys.flag("remove_extra_whitespaces", False),
        prefix=keys.flag("add_space_prefix", False),
    )
    return {**parts, "post_processor": _around(keys, False, True)}


def _wordpiece(keys: Keys) -> Json:
    vocabulary = {
        wordpiece_name(token, kind): at
        for at, (token, kind) in enumerate(zip(keys.tokens, keys.types, strict=True))
        if not keys.is_filler(at)
    }
    unknown = keys.token("unk")
    lowercase = keys.flag("normalizer.lowercase", True)
    return wordpiece(
        vocabulary,
        unknown=unknown[0] if unknown else "[UNK]",
        first=keys.token("cls") or keys.token("bos"),
        last=keys.token("sep"),
        lowercase=lowercase,
        strip_accents=keys.flag("normalizer.strip_accents", lowercase),
    )


def wordpiece_name(token: str, kind: int) -> str:
    """The name in vocab.txt of a token of GGUF, which marks where words start, not where they go on."""
    if kind != TokenType.NORMAL or (token.startswith("[") and token.endswith("]")):
        return token
    return token[len(SPACE) :] if token.startswith(SPACE) and token != SPACE else "##" + token


_MODELS = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma4": _gemma4,
    "t5": _unigram,
    "bert": _wordpiece,
}


def _role_tokens(keys: Keys) -> dict[str, tuple[str, int]]:
    roles = dict(keys.ids)
    if keys.model == "bert" and "bos" in roles:
        roles.setdefault("cls", roles["bos"])  # BERT has no bos; GGUF's bos is its [CLS]
        del roles["bos"]
        roles.pop("eos", None)
    return {role: (keys.tokens[at], at) for role, at in roles.items() if not keys.is_filler(at)}


def _config(keys: Keys, config: Mapping[str, Any]) -> Json:
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    result: Json = {
        # The class of the day (TokenizersBackend in transformers 5) cannot be loaded by transformers 4.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": keys.model in _CLEANING,
        "model_input_names": inputs if keys.model == "bert" else [inputs[0], inputs[2]],
    }
    for name in ("max_position_embeddings", "n_positions"):
        longest = config.get(name)
        if isinstance(longest, int) and longest > 0:
            result["model_max_length"] = longest
            break
    for role, token in _role_tokens(keys).items():
        result[f"{role}_token"] = token[0]
    return result
