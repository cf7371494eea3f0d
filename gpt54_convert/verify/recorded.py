"""The manifest beside an artifact, read only if it still has the shape in which this tool wrote it.

Somebody may have edited it, or a copy may have lost a part: a list of files that is gone must not make the
check of files pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gpt54_convert.core.workspace import MANIFEST
from gpt54_convert.errors import InputError

_FILE = {"name": str, "size_bytes": int, "sha256": str}
_TENSOR = {"name": str, "role": str, "shape": list, "grid": str, "bits_per_weight": (int, float)}


def read(folder: Path) -> Mapping[str, Any]:
    """The manifest in `folder`; nothing where there is none, or one of another tool.

    Raises InputError where it cannot be read, or lacks what this tool always writes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make the artifact again") from error
    if not isinstance(content, dict) or not str(content.get("schema", "")).startswith(
        "gpt54-convert/manifest/"
    ):
        return {}
    wrong = _wrong_entry(content)
    if wrong:
        raise InputError(
            f"{path}: {wrong!r} is not as it was written, so what the artifact should be is unknown; make or "
            "copy it again"
        )
    return content


def _wrong_entry(content: Mapping[str, Any]) -> str:
    """The first entry of another kind than it must be; empty where there is none."""
    source, recipe = content.get("source"), content.get("recipe")
    if not isinstance(source, dict) or not isinstance(source.get("path"), (str, type(None))):
        return "source"
    if not isinstance(recipe, dict) or not isinstance(recipe.get("quantize", {}), dict):
        return "recipe"
    if not isinstance(recipe.get("passes", []), list):
        return "recipe"
    outputs = content.get("outputs")
    if not outputs or not _are(outputs, _FILE) or not all(_is_inside(entry["name"]) for entry in outputs):
        return "outputs"
    return "" if _are(content.get("tensors"), _TENSOR) else "tensors"


def _are(entries: Any, kinds: Mapping[str, Any]) -> bool:
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
        for entry in entries
    )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
