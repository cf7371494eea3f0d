"""The tokenizer files of a HF model folder -> GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpt54_convert.errors import UnsupportedError
from gpt54_convert.tokenizers import chat, frame
from gpt54_convert.tokenizers.converted import Converted
from gpt54_convert.tokenizers.from_bpe import convert_bpe
from gpt54_convert.tokenizers.from_unigram import convert_unigram
from gpt54_convert.tokenizers.from_wordpiece import convert_wordpiece
from gpt54_convert.tokenizers.keys import GgufKey, TokenType, filler, role_key
from gpt54_convert.tokenizers.old_files import read_source
from gpt54_convert.tokenizers.pretokenizers import check_name
from gpt54_convert.tokenizers.source import Source, read_json
from gpt54_convert.tokenizers.special import special_ids
from gpt54_convert.tokenizers.table import tokens_by_id

_MODELS: dict[str, Callable[[Source, str, str | None], Converted]] = {
    "BPE": convert_bpe,
    "Unigram": convert_unigram,
    "WordPiece": convert_wordpiece,
}


def to_gguf(
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
    *,
    gguf_architecture: str,
    vocab_size: int,
    pre: str | None = None,
) -> list[GgufKey]:
    """The `tokenizer.*` metadata for the tokenizer in `files`.

    files: HF tokenizer files by name.  config: the model's config.json.  vocab_size: rows of the embedding;
    ids without a token become unused tokens.  pre: the user's own choice of `tokenizer.ggml.pre`, which also
    skips the check that llama.cpp normalizes and splits text as these files say.
    """
    if pre is not None:
        check_name(pre)
    source = read_source(files)
    convert = _MODELS.get(source.model["type"])
    if convert is None:
        raise UnsupportedError(
            f"{source.file} holds a {source.model['type']} model, which GGUF cannot; "
            "only BPE, Unigram and WordPiece can be converted"
        )
    tokens = tokens_by_id(source, vocab_size)
    ids = {token: token_id for token_id, token in tokens.items()}
    converted = convert(source, gguf_architecture, pre)
    special, flags = special_ids(source, ids, _model_ids(files, config), converted.model, pre)
    return [
        GgufKey("tokenizer.ggml.model", converted.model, "STRING"),
        GgufKey("tokenizer.ggml.pre", converted.pre, "STRING"),
        *_table(source, tokens, converted, vocab_size),
        *(GgufKey(role_key(role), token_id, "UINT32") for role, token_id in special.items()),
        *(
            GgufKey(f"tokenizer.ggml.{name}", value, "BOOL")
            for name, value in {**converted.flags, **flags}.items()
        ),
        *converted.more,
        *chat.to_keys(files, source.config),
        frame.take_from(source.tokenizer),
    ]


def _model_ids(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, Any]:
    """`bos_token_id` and its like, from generation_config.json and, first, from config.json."""
    stated = {**(read_json(files, "generation_config.json") or {}), **config}
    return {key: value for key, value in stated.items() if key.endswith("_token_id") and value is not None}


def _table(source: Source, tokens: dict[int, str], converted: Converted, vocab_size: int) -> list[GgufKey]:
    special = {token["id"]: bool(token.get("special")) for token in source.tokenizer["added_tokens"]}
    names, types, scores = [], [], []
    for token_id in range(vocab_size):
        token = tokens.get(token_id)
        kind = _type(token_id, token, special, converted)
        text = filler(token_id) if token is None else token
        names.append(converted.rename(text) if kind == TokenType.NORMAL else text)
        types.append(int(kind))
        scores.append(converted.scores.get(text, -1000.0) if converted.scores is not None else 0.0)
    converted.check_unique(source, names)
    keys = [GgufKey("tokenizer.ggml.tokens", names, "ARRAY:STRING")]
    if converted.scores is not None:
        keys.append(GgufKey("tokenizer.ggml.scores", scores, "ARRAY:FLOAT32"))
    keys.append(GgufKey("tokenizer.ggml.token_type", types, "ARRAY:INT32"))
    if converted.merges is not None:
        merges = [f"{left} {right}" for left, right in converted.merges]
        keys.append(GgufKey("tokenizer.ggml.merges", merges, "ARRAY:STRING"))
    return keys


def _type(token_id: int, token: str | None, special: Mapping[int, bool], converted: Converted) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if token == converted.unknown:
        return TokenType.UNKNOWN
    if token_id in special:
        return TokenType.CONTROL if special[token_id] else TokenType.USER_DEFINED
    return TokenType.BYTE if token in converted.bytes else TokenType.NORMAL
