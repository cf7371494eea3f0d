"""The text to measure on, and how many documents run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt54_convert import data
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Batch, Document, stack
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.overlap import long_lines, shared

LOGITS_BYTES = 256 << 20  # of one batch, in one model


def read_text(options: VerifyOptions, fitted: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text to measure on.

    fitted: what the artifact's manifest says of texts that it was fitted to.
    Raises UsageError where it overlaps one of them, or the package's own calibration text.
    """
    if options.text is None:
        return data.text("heldout")
    try:
        text = options.text.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {options.text}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--text {options.text}: is not UTF-8 text ({error})") from error
    if not text.strip():
        raise InputError(f"--text {options.text}: holds no text")
    same = long_lines(text) & long_lines(data.text("calibration"))
    if same:
        raise UsageError(
            f"--text {options.text}: shares {len(same)} lines with the calibration text (first: "
            f"{min(same)[:60]!r}), and a model must not be judged on text it was fitted to; take another"
        )
    own = shared(options.text, text, fitted)
    if own:
        raise UsageError(
            f"--text {options.text}: shares lines with {own}, which the artifact was calibrated on, and a "
            "model must not be judged on text it was fitted to; take another"
        )
    return text


def batches(documents: list[Document], checkpoint: Checkpoint, options: VerifyOptions) -> Iterator[Batch]:
    """The documents in batches whose logits take at most LOGITS_BYTES in one model."""
    width = max(
        int(checkpoint.config.get("vocab_size") or 0), int(checkpoint.config.get("hidden_size") or 0), 1024
    )
    longest = max(len(document.tokens) for document in documents)
    size = options.batch or max(1, min(16, LOGITS_BYTES // (4 * width * longest)))
    for first in range(0, len(documents), size):
        yield stack(documents[first : first + size], first)


def some(documents: list[Document], tokens: int) -> list[Document]:
    """The first documents of about `tokens` tokens, at least two."""
    chosen: list[Document] = []
    for document in documents:
        if len(chosen) >= 2 and sum(len(d.tokens) for d in chosen) >= tokens:
            break
        chosen.append(document)
    return chosen
