"""Whether a text to measure on shares lines with a text that an artifact was fitted to.

A manifest keeps hashes of the calibration text's lines and not the text: the smallest of them, so that a
text of any size leaves a short record in which any shared stretch of some length is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LONG_LINE = 40  # characters; shorter lines ("Chapter 1") may stand in any two books
_KEPT = 256


def long_lines(text: str) -> set[str]:
    """The lines that are long enough to tell one text from another, white space folded."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) >= _LONG_LINE}


def record(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """What a manifest says of the user's own calibration texts."""
    found = []
    for path in paths:
        raw = path.read_bytes()
        hashes = sorted(map(_hash, long_lines(_text(path, raw))))[:_KEPT]
        digest = hashlib.sha256(raw).hexdigest()
        found.append({"name": path.name, "sha256": digest, "line_hashes": hashes})
    return found


def shared(path: Path, text: str, recorded: Sequence[Mapping[str, Any]]) -> str:
    """The name of the recorded text that `text` (the content of `path`) overlaps; empty where none does."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    hashes = set(map(_hash, long_lines(text)))
    for entry in recorded:
        if entry.get("sha256") == digest or hashes & set(entry.get("line_hashes", ())):
            return str(entry.get("name", "calibration text"))
    return ""


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8")).hexdigest()[:12]


def _text(path: Path, raw: bytes) -> str:
    """The lines of a text, or the texts of a .jsonl file."""
    text = raw.decode("utf-8-sig", "replace")
    if path.suffix.lower() != ".jsonl":
        return text
    found = []
    for line in text.split("\n"):  # strings may hold other line ends
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        values = entry.values() if isinstance(entry, dict) else [entry]
        found += [value for value in values if isinstance(value, str)]
    return "\n".join(found)
