"""What GGUF has no keys for, kept in one small key of our own: the frame of tokenizer.json.

That is: normalizer, pre_tokenizer, post_processor, decoder, the model's flags, and those added tokens whose
flags are not what their GGUF token type implies.  Vocabulary, merges and charsmap are where GGUF keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers.keys import FRAME_KEY, GgufKey
from gpt54_convert.tokenizers.parts import added_token
from gpt54_convert.tokenizers.read_keys import Keys

Json = dict[str, Any]

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_CHARSMAP = "precompiled_charsmap"


def take_from(tokenizer: Mapping[str, Any]) -> GgufKey:
    """The key that holds the frame of this tokenizer.json."""
    model = {name: value for name, value in tokenizer["model"].items() if name not in ("vocab", "merges")}
    odd = [
        token
        for token in tokenizer.get("added_tokens") or ()
        if token != added_token(token["id"], token["content"], bool(token.get("special")))
    ]
    kept = {name: _without_charsmap(tokenizer.get(name)) for name in _PARTS}
    value = {**kept, "model": model, "added_tokens": odd}
    return GgufKey(FRAME_KEY, json.dumps(value, ensure_ascii=False, separators=(",", ":")), "STRING")


def _without_charsmap(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_charsmap(item) for item in value]
    if isinstance(value, dict):
        return {key: "" if key == _CHARSMAP else _without_charsmap(item) for key, item in value.items()}
    return value


def put_into(tokenizer: Json, keys: Keys) -> Json:
    """`tokenizer` with the frame of these keys, where they have one."""
    text = keys.raw.get(FRAME_KEY)
    if text is None:
        return tokenizer
    try:
        frame = json.loads(text)
        model = frame["model"]
        odd = {int(token["id"]): token for token in frame["added_tokens"]}
        kept = {name: frame[name] for name in _PARTS}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{FRAME_KEY} is no frame of a tokenizer.json; convert the model again") from None
    kind = tokenizer["model"]["type"]
    if model.get("type") != kind:
        raise InputError(f"{FRAME_KEY} is not for the {kind} model that the keys describe; convert it again")
    added = [
        odd[token["id"]] if odd.get(token["id"], {}).get("content") == token["content"] else token
        for token in tokenizer["added_tokens"]
    ]
    filled = _with_charsmap(kept, _charsmap_of(tokenizer))
    return {**tokenizer, **filled, "added_tokens": added, "model": {**tokenizer["model"], **model}}


def _charsmap_of(tokenizer: Mapping[str, Any]) -> str:
    for part in (tokenizer["normalizer"] or {}).get("normalizers", ()):
        if _CHARSMAP in part:
            return str(part[_CHARSMAP])
    return ""


def _with_charsmap(value: Any, charsmap: str) -> Any:
    if isinstance(value, list):
        return [_with_charsmap(item, charsmap) for item in value]
    if isinstance(value, dict):
        return {
            key: charsmap if key == _CHARSMAP else _with_charsmap(item, charsmap)
            for key, item in value.items()
        }
    return value
