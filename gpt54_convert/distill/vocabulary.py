"""Whether teacher and student mean the same token by the same id, and which rows are mere padding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.distill.choice import Choice, means
from gpt54_convert.errors import InputError, UsageError

MOST_PADDING = 1024  # rows; more are other tokens


def tokens(files: Mapping[str, bytes]) -> dict[str, int] | None:
    """Token -> id of a tokenizer.json, added tokens among them; None where there is none."""
    content = files.get("tokenizer.json")
    if content is None:
        return None
    try:
        found: Any = json.loads(content.decode("utf-8"))
        vocabulary = found["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: [token, score]
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in found.get("added_tokens", [])}
        return {str(token): int(index) for token, index in {**vocabulary, **added}.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"tokenizer.json cannot be read ({error!r}); get the file again") from error


def reconciled(teacher: Checkpoint, old: int, new: int, student_files: Mapping[str, bytes]) -> Choice | None:
    """What the student's `new` rows are made of, of the teacher's `old`; None for all of them.

    student_files: the student's own tokenizer, where it has one.
    Raises UsageError where the vocabularies do not match, so that it is more than padding.
    """
    own = tokens(teacher.tokenizer)
    same_tokens(own, tokens(student_files))
    if new == old:
        return None
    used = max(own.values()) + 1 if own else None
    if new < old:
        if used is None or new < used:
            reason = (
                f"its tokenizer uses {used}"
                if used
                else "it has no tokenizer.json to tell padding from tokens"
            )
            raise UsageError(
                f"the vocabularies do not match: the student has {new} rows, the teacher {old}, and "
                f"{reason}; give the student the teacher's vocab_size"
            )
        return means([[row] for row in range(new)])
    if new - old > MOST_PADDING:
        raise UsageError(
            f"the vocabularies do not match: the student has {new} rows, {new - old} more than the teacher's "
            f"{old}, and padding is at most {MOST_PADDING}; give the student the teacher's vocab_size"
        )
    return means([*([row] for row in range(old)), *([-1] for _ in range(new - old))])


def same_tokens(own: dict[str, int] | None, other: dict[str, int] | None) -> None:
    """Raise UsageError unless both give every token the same id."""
    if own is None or other is None or own == other:
        return
    token = min(own.keys() ^ other.keys() or {t for t in own if own[t] != other[t]})
    ids = [str(each.get(token, "none")) for each in (own, other)]
    raise UsageError(
        f"the vocabularies do not match: token {token[:40]!r} has id {ids[0]} for the teacher and {ids[1]} "
        "for the student; a student must share its teacher's tokenizer"
    )
