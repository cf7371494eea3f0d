"""The tokenizer's part of a GGUF file's metadata, checked: nothing in a file is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.tokenizers.keys import ROLE_KEYS, TokenType, filler, role_key

# llama.cpp's defaults for files that say nothing (src/llama-vocab.cpp, llama_vocab::impl::load).
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}


@dataclass(frozen=True)
class Keys:
    """Tokens by id with their types and scores, the special ids by role, and the raw metadata."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    ids: dict[str, int]
    raw: Mapping[str, Any]

    def flag(self, name: str, default: bool) -> bool:
        """`tokenizer.ggml.{name}`, or llama.cpp's default."""
        value = self.raw.get(f"tokenizer.ggml.{name}")
        if value is not None and not isinstance(value, bool):
            raise _bad(f"tokenizer.ggml.{name}", f"is {value!r:.40} and not true or false")
        return default if value is None else value

    def token(self, role: str) -> tuple[str, int] | None:
        """Text and id of the token with this role."""
        token_id = self.ids.get(role)
        return None if token_id is None else (self.tokens[token_id], token_id)

    def is_filler(self, token_id: int) -> bool:
        """True for a row that stands for no token, only for padding up to the embedding's size."""
        return self.tokens[token_id] == filler(token_id) and self.types[token_id] in (
            TokenType.UNUSED,
            TokenType.USER_DEFINED,  # as older converters marked them
        )


def read_keys(raw: Mapping[str, Any]) -> Keys:
    """The checked tokenizer metadata of a GGUF file."""
    model = raw.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise InputError(
            "the GGUF file has no tokenizer.ggml.model, so no tokenizer; give the tokenizer files"
        )
    tokens = _strings(raw, "tokenizer.ggml.tokens")
    seen: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if seen.setdefault(token, token_id) != token_id:
            raise _bad(
                "tokenizer.ggml.tokens", f"holds {token!r:.60} twice (ids {seen[token]} and {token_id})"
            )
    types = _numbers(raw, "tokenizer.ggml.token_type", len(tokens), float(TokenType.NORMAL))
    scores = _numbers(raw, "tokenizer.ggml.scores", len(tokens), 0.0)
    ids = {
        role: token_id
        for role, token_id in _DEFAULT_IDS.get(model, {}).items()
        if token_id < len(tokens) and role_key(role) not in raw
    }
    for role in ROLE_KEYS:
        value = raw.get(role_key(role))
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            raise _bad(role_key(role), f"is {value!r:.40}, but there are {len(tokens)} tokens")
        ids[role] = value
    return Keys(model, tokens, [int(kind) for kind in types], scores, ids, raw)


def _strings(raw: Mapping[str, Any], key: str) -> list[str]:
    value: Any = raw.get(key)
    if not _is_array(value) or not all(isinstance(item, str) for item in value):
        raise _bad(key, "is missing or no list of strings")
    return list(value)


def _numbers(raw: Mapping[str, Any], key: str, count: int, default: float) -> list[float]:
    value = raw.get(key)
    if value is None:
        return [default] * count
    if not _is_array(value) or len(value) < count:
        raise _bad(key, f"is no list of {count} numbers, one a token")
    try:
        numbers = [float(item) for item in value[:count]]
    except (TypeError, ValueError):
        raise _bad(key, "holds something that is no number") from None
    if not all(map(math.isfinite, numbers)):
        raise _bad(key, "holds a number that is not finite")
    return numbers


def _is_array(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) > 0


def _bad(key: str, what: str) -> InputError:
    return InputError(f"{key} {what}; the GGUF file is damaged, convert it again from the original model")


def unsupported_model(model: str) -> UnsupportedError:
    """The error for a kind of tokenizer that tokenizer.json cannot express, or that we do not know."""
    return UnsupportedError(
        f"tokenizer.ggml.model is {model!r:.40}, which cannot be rebuilt as tokenizer.json (gpt2, llama, "
        "gemma4, t5 and bert can); use the tokenizer files of the original model instead"
    )
