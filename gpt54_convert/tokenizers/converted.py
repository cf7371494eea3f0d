"""What the converters of the three kinds of tokenizer.json model share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.tokenizers.keys import SPACE, GgufKey
from gpt54_convert.tokenizers.merges import (
    Pair,
)
from gpt54_convert.tokenizers.source import Source

Json = dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """A GGUF tokenizer without its table of tokens."""

    model: str
    pre: str
    merges: list[Pair] | None = None
    scores: Mapping[str, float] | None = None
    unknown: str | None = None  # the token of type UNKNOWN
    bytes: frozenset[str] = frozenset()
    rename: Callable[[str], str] = str
    flags: Mapping[str, bool] = field(default_factory=dict)
    more: tuple[GgufKey, ...] = ()

    def check_unique(self, source: Source, names: list[str]) -> None:
        """llama.cpp aborts the process at a file that holds a token twice."""
        if len(set(names)) == len(names):
            return
        seen: set[str] = set()
        for token_id, name in enumerate(names):
            if name in seen:
                raise InputError(
                    f"{source.file} holds {name!r:.60} twice (again at id {token_id}); mend the vocabulary"
                )
            seen.add(name)


def normalizers_of(normalizer: Any, file: str) -> list[Json]:
    """The steps of a `normalizer` of tokenizer.json; nested sequences are flattened."""
    if normalizer is None:
        return []
    if not isinstance(normalizer, dict) or not isinstance(normalizer.get("type"), str):
        raise InputError(f"{file} has a normalizer without a type; save the tokenizer again")
    if normalizer["type"] != "Sequence":
        return [normalizer]
    inner = normalizer.get("normalizers")
    return [
        step for part in (inner if isinstance(inner, list) else []) for step in normalizers_of(part, file)
    ]


def refused(source: Source, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{source.file} {what}, which llama.cpp does not do; "
        "--pre NAME converts it all the same, and verify tells how many ids differ"
    )


def _metaspace(source: Source) -> Json:
    """The (one) Metaspace among the pre-tokenizers."""
    pre_tokenizer = source.tokenizer["pre_tokenizer"]
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return next((part for part in parts if part.get("type") == "Metaspace"), {})


def metaspace_prefix(source: Source) -> bool:
    part = _metaspace(source)
    if part.get("replacement", SPACE) != SPACE:
        raise refused(source, f"writes {part.get('replacement')!r} for a space")
    inside = (
        (token for token in source.model["vocab"] if SPACE in token[1:])
        if source.model["type"] == "BPE"
        else ()
    )
    if part.get("split", True) and next(iter(inside), None) is not None:
        raise refused(source, "splits at spaces, but has tokens with spaces inside")
    return _prefix_flag(part)


def _prefix_flag(part: Json) -> bool:
    scheme = part.get("prepend_scheme")
    return bool(part.get("add_prefix_space", True)) if scheme is None else scheme != "never"
