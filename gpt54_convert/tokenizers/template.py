"""Which special tokens a tokenizer puts around a text: the `post_processor` of tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt54_convert.errors import InputError


@dataclass(frozen=True)
class Around:
    """Token ids before and after a single text, and between the two texts of a pair."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    between: tuple[int, ...] = ()


def read_around(post_processor: Any, file: str) -> Around | None:
    """What `post_processor` puts around a text; None where there is no post-processor at all."""
    if post_processor is None:
        return None
    try:
        return _read(post_processor)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise InputError(
            f"{file} has a post_processor that cannot be read; save the tokenizer again"
        ) from None


def _read(part: Mapping[str, Any]) -> Around:
    kind = part["type"]
    if kind == "Sequence":
        found = [_read(inner) for inner in part["processors"]]
        adding = [around for around in found if around != Around()]
        return adding[-1] if adding else Around()
    if kind in ("BertProcessing", "RobertaProcessing"):
        first, last = int(part["cls"][1]), int(part["sep"][1])
        return Around((first,), (last,), (last,) if kind == "BertProcessing" else (last, last))
    if kind == "TemplateProcessing":
        before, after = _halves(part, part["single"], "A", None)
        _, between = _halves(part, part["pair"], "A", "B")
        return Around(before, after, between)
    return Around()  # ByteLevel: only trims offsets


def _halves(
    part: Mapping[str, Any], items: list[Any], first: str, last: str | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before the text `first`, and after it up to the text `last`."""
    before: list[int] = []
    after: list[int] = []
    target = before
    for item in items:
        if "Sequence" in item:
            if item["Sequence"]["id"] == last:
                break
            target = after
        else:
            target.extend(int(value) for value in part["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return tuple(before), tuple(after)


def write_around(
    before: tuple[str, int] | None, after: tuple[str, int] | None, separator: tuple[str, int] | None = None
) -> dict[str, Any]:
    """A TemplateProcessing with these tokens (text and id) around a text.

    separator: BERT's token between the texts of a pair; else each text of a pair gets what a single one gets.
    """

    def special(token: tuple[str, int], type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token[0], "type_id": type_id}}

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        left = [special(before, type_id)] if before else []
        right = [special(after, type_id)] if after else []
        return [*left, {"Sequence": {"id": name, "type_id": type_id}}, *right]

    second = text("B", 1)
    if separator is not None and before:
        second = second[1:]
    tokens = {token[0]: token[1] for token in (before, after, separator) if token}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *second],
        "special_tokens": {name: {"id": name, "ids": [at], "tokens": [name]} for name, at in tokens.items()},
    }
