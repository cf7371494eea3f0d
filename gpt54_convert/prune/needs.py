"""What measures with torch, asked for only when something is measured."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpt54_convert.errors import MeasureError


def measuring(name: str) -> Any:
    """The module `name` of this folder.  Raises MeasureError where torch or transformers is missing."""
    try:
        return import_module(f"gpt54_convert.prune.{name}")
    except ImportError as error:
        raise MeasureError(
            f"pruning by what flows through the model needs {error.name or 'torch'}: pip install "
            "'gpt54-convert[torch]', or choose without text (--layer-choice even, --importance weights, "
            "--criterion magnitude)"
        ) from error
