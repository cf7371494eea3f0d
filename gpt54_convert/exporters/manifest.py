"""manifest.json: what an artifact is, what it was made from, and how far each tensor is from its source.

No time and no machine stands in it: the same input and recipe give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt54_convert import __version__
from gpt54_convert.core.checkpoint import Source
from gpt54_convert.core.report import Report
from gpt54_convert.core.workspace import MANIFEST

SCHEMA = "gpt54-convert/manifest/1"
_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_entries(paths: Sequence[Path], root: Path) -> list[dict[str, Any]]:
    """Name (relative to `root`), size and SHA-256 of each file."""
    return [
        {
            "name": path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name,
            "size_bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in paths
    ]


def source_entry(source: Source, report: Report) -> dict[str, Any]:
    """Path, container and hashes of everything that was read."""
    root = source.path if source.path.is_dir() else source.path.parent
    if not source.files:
        return {"path": None, "container": source.container, "files": []}
    entries = []
    with report.progress("hashing the source", sum(path.stat().st_size for path in source.files)) as advance:
        for path in source.files:
            entries += file_entries([path], root)
            advance(entries[-1]["size_bytes"])
    return {"path": str(source.path.absolute()), "container": source.container, "files": entries}


def write(
    folder: Path,
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    container: str,
    name: str,
    tensors: Sequence[Mapping[str, Any]],
    totals: Mapping[str, Any],
    verification: Mapping[str, Any] | None = None,
) -> Path:
    """Hash every file of `folder` and write its manifest; returns the manifest's path.

    verification: the verdict over what was written, as `verify.quick.summary` puts it.
    """
    outputs = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    content = {
        "schema": SCHEMA,
        "tool": {"name": "gpt54-convert", "version": __version__},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "numba", "gguf", "safetensors")},
        },
        "name": name,
        "container": container,
        "source": source,
        "recipe": recipe,
        "totals": totals,
        **({"verification": verification} if verification else {}),
        "outputs": file_entries(outputs, folder),
        "tensors": tensors,
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
