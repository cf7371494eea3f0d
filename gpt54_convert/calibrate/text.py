"""Calibration text as documents of one length, so that batches need no padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt54_convert import archs, data
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError, MeasureError
from gpt54_convert.forward.batch import Batch, Document, stack
from gpt54_convert.forward.documents import longest, specials, tokenizer

PREFIX = 96  # tokens that an encoder-decoder's encoder reads
_BATCH_TOKENS = 2048
_BATCHES = 8  # or more
_SPARE = 4  # windows to draw from, as a multiple of those that are used
_KEYS = ("text", "content", "prompt")  # of a .jsonl line


def read(options: Calibration) -> str:
    """The text.  Raises InputError where the file is missing, empty, not UTF-8, or no text is in it."""
    path = options.calibration
    if path is None:
        return data.text("calibration")
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the text
    except OSError as error:
        raise InputError(f"--calibration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--calibration {path}: is not UTF-8 text ({error})") from error
    if path.suffix.lower() == ".jsonl":
        text = "\n\n".join(_lines(text, path))
    if not text.strip():
        raise InputError(f"--calibration {path}: holds no text")
    return text


def _lines(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON's strings may hold other line ends as they are
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise InputError(f"--calibration {path}: line {number} is not JSON ({reason})") from error
        if isinstance(entry, dict):
            entry = next((entry[key] for key in _KEYS if key in entry), None)
        if not isinstance(entry, str):
            raise InputError(
                f"--calibration {path}: line {number} is neither a string nor an object with one of "
                f"{', '.join(_KEYS)}"
            )
        if any("\ud800" <= character <= "\udfff" for character in entry):
            raise InputError(
                f"--calibration {path}: line {number} holds half a character (a lone surrogate, as \\ud83d), "
                "which no tokenizer takes; mend or remove it"
            )
        yield entry


def digest(text: str) -> str:
    """The hash by which a manifest names the text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def record(steps: Iterable[Any]) -> dict[str, str]:
    """For a manifest: of the steps that calibrate, by their names, the hash of the text."""
    used = [step for step in steps if isinstance(step, Calibration)]
    return {type(step).__name__.lower(): digest(read(step)) for step in used}


def documents(text: str, checkpoint: Checkpoint, options: Calibration) -> list[Document]:
    """Up to `calibration_samples` stretches of `calibration_length` tokens, all of one length.

    Drawn from all over the text by the seed.  A text shorter than one stretch is a document by itself.
    Raises MeasureError where the tokenizer is missing or not the model's.
    """
    tokenize = tokenizer(checkpoint)
    kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "decoder"
    before, after = specials(tokenize)
    length = min(options.calibration_length, longest(checkpoint))
    if kind == "encoder-decoder":
        before, after, taken = [], [], length + PREFIX
    else:
        before, after = before[: length - 1], after if kind == "encoder" else []
        taken = max(1, length - len(before) - len(after))
    windows = _windows(text, tokenize, taken, options)
    vocab = int(checkpoint.config.get("vocab_size") or 1 << 31)
    if max(max(window) for window in windows) >= vocab:
        raise MeasureError(
            f"tokenizer.json makes tokens that the model's vocabulary of {vocab} lacks; get the model's own"
        )
    start = int(checkpoint.config.get("decoder_start_token_id") or 0)
    return [_document([*before, *window, *after], kind, start) for window in windows]


def _windows(text: str, tokenize: Any, length: int, options: Calibration) -> list[list[int]]:
    """Non-overlapping windows in the order of the text, all of one length."""
    wanted, found, ids = options.calibration_samples, [], []
    for part in _parts(text):
        ids += tokenize.encode(part, add_special_tokens=False).ids
        while len(ids) >= length:
            found.append(ids[:length])
            ids = ids[length:]
        if len(found) >= wanted * _SPARE:
            break
    if not found:
        if not ids:
            raise InputError("the calibration text has no tokens")
        return [ids]
    picks = np.random.default_rng(options.calibration_seed).permutation(len(found))[:wanted]
    return [found[i] for i in sorted(picks)]


def _parts(text: str, size: int = 1 << 15) -> Iterator[str]:
    """The text in pieces that end with a paragraph where possible: a large file is not tokenized whole."""
    start = 0
    while start < len(text):
        stop = len(text) if start + size >= len(text) else text.rfind("\n\n", start + 1, start + size)
        stop = stop if stop > start else min(start + size, len(text))
        yield text[start:stop]
        start = stop


def _document(ids: list[int], kind: str, start: int) -> Document:
    none = np.empty(0, np.int64)
    if kind != "encoder-decoder":
        return Document(np.array(ids), none)
    at = PREFIX if len(ids) > PREFIX else max(1, len(ids) // 2)
    return Document(np.array([start, *ids[at:-1]]), none, np.array(ids[:at]))


def batches(documents: list[Document]) -> list[Batch]:
    """The documents in batches of one size; what does not fill the last one is left out.

    There are at least _BATCHES of them, documents permitting: one of a few would be much to judge by.
    """
    length = len(documents[0].tokens)
    size = max(1, min(len(documents) // _BATCHES, _BATCH_TOKENS // length))
    starts = range(0, len(documents) - size + 1, size)
    return [stack(documents[i : i + size], i) for i in starts]
