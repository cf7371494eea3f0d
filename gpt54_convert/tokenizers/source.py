"""The tokenizer files of a HF folder, checked and in one form: a tokenizer.json and the special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers.keys import ROLE_KEYS

Json = dict[str, Any]

# Token ids are indices into an embedding; no model has one of this many rows.
_MOST_TOKENS = 16_777_216


@dataclass(frozen=True)
class Source:
    """A tokenizer.json (read, or built from older files) and what stands beside it.

    file: the name errors blame.  roles: role -> text of the special token.  scores: sentencepiece's own
    scores by piece, where a sentencepiece model was read.
    """

    file: str
    tokenizer: Json
    config: Json
    roles: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] | None = None

    @property
    def model(self) -> Json:
        """The `model` of tokenizer.json."""
        model: Json = self.tokenizer["model"]
        return model


def read_json(files: Mapping[str, bytes], name: str) -> Json | None:
    """The object in the JSON file `name`; None where there is no such file."""
    content = files.get(name)
    if content is None:
        return None
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}); fetch it again") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name} is broken JSON (line {error.lineno}: {error.msg}); fetch it again"
        ) from None
    except (RecursionError, ValueError):
        raise InputError(f"{name} is JSON nested or numbered beyond reason; fetch it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} holds no JSON object; fetch it again")
    return value


def checked(tokenizer: Json, file: str) -> Json:
    """`tokenizer` with the parts that everything else relies on known to be there and of the right kind."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{file} has no model; save the tokenizer again")
    kind = model.get("type") or _kind_of_old(model)
    if kind == "Unigram":
        _check_scored(model.get("vocab"), file)
    elif kind in ("BPE", "WordPiece"):
        _check_vocabulary(model.get("vocab"), f"{file} (model.vocab)")
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list):
        raise InputError(f"{file} (added_tokens) is no list; save the tokenizer again")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise InputError(f"{file} (added_tokens) holds a token without content; save the tokenizer again")
        _check_id(token.get("id"), token["content"], f"{file} (added_tokens)")
    return {**tokenizer, "added_tokens": added, "model": {**model, "type": kind}}


def _kind_of_old(model: Json) -> str:
    """Before tokenizers 0.11 the model's type was not written."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece"


def _check_scored(vocabulary: Any, file: str) -> None:
    if not isinstance(vocabulary, list) or not vocabulary:
        raise InputError(f"{file} (model.vocab) is no list of pieces; save the tokenizer again")
    for index, entry in enumerate(vocabulary):
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not good or isinstance(entry[1], bool) or not isinstance(entry[1], (int, float)):
            raise InputError(f"{file} (model.vocab) entry {index} is no piece with a score; save it again")


def _check_vocabulary(vocabulary: Any, where: str) -> None:
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{where} is no table of tokens; save the tokenizer again")
    seen: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        _check_id(token_id, token, where)
        if seen.setdefault(token_id, token) != token:
            raise InputError(
                f"{where} gives id {token_id} to both {seen[token_id]!r:.60} and {token!r:.60}; "
                "mend the vocabulary"
            )


def _check_id(token_id: Any, token: str, where: str) -> None:
    if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < _MOST_TOKENS:
        raise InputError(
            f"{where} gives the token {token!r:.60} the id {token_id!r:.40}; mend the vocabulary"
        )


def roles_of(files: Mapping[str, bytes], config: Json) -> dict[str, str]:
    """Role -> text, from tokenizer_config.json and, where that says nothing, special_tokens_map.json."""
    special = read_json(files, "special_tokens_map.json") or {}
    roles = {}
    for role in ROLE_KEYS:
        for stated in (config.get(f"{role}_token"), special.get(f"{role}_token")):
            text = stated.get("content") if isinstance(stated, dict) else stated
            if isinstance(text, str) and text:
                roles[role] = text
                break
    return roles
