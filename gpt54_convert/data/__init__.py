"""The files shipped with the package: the embedded model and its text.

This module is light on purpose: it imports neither torch nor numpy.
"""

from __future__ import annotations

import lzma
from pathlib import Path

__all__ = ["SPLITS", "model_path", "text"]

#: The names of the text splits, in the order of their use.
SPLITS = ("train", "calibration", "heldout")

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """Return the folder of the embedded model (weights, configuration, tokenizer)."""
    return _HERE / "gpt54-tiny"


def text(split: str) -> str:
    """Return the text of one split: ``"train"``, ``"calibration"`` or ``"heldout"``.

    Paragraphs are separated by one blank line; a paragraph is one line.
    """
    if split not in SPLITS:
        known = ", ".join(repr(name) for name in SPLITS)
        raise ValueError(f"There is no text split {split!r}; the splits are {known}.")
    packed = (_HERE / "text" / f"{split}.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")
