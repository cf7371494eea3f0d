"""llama.cpp's importance matrices: GGUF files with the sums of the squares of every matrix's inputs.

Layout: llama.cpp `tools/imatrix/imatrix.cpp`.  `NAME.in_sum2` [1, in] and `NAME.counts` [1, 1], both float32,
where NAME is the matrix's own name in a GGUF model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpt54_convert import archs
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.errors import InputError
from gpt54_convert.formats import gguf, gguf_layout
from gpt54_convert.formats.safetensors import Writer
from gpt54_convert.quantize.statistics import Statistics

_SUMS, _COUNTS = ".in_sum2", ".counts"


def write(
    path: Path, checkpoint: Checkpoint, found: Mapping[str, Statistics], dataset: str, length: int
) -> None:
    """Write statistics by tensor name, as llama.cpp's own tools read them.

    dataset: what the text is called.  length: tokens of a document (llama.cpp's chunk).
    Raises OutputError where the file cannot be written; an existing one is replaced when all is done.
    """
    tensors: dict[str, Any] = {}
    for name, statistics in sorted(found.items()):
        stem = _gguf_name(checkpoint, name)
        count = np.float32(max(1, statistics.tokens))
        tensors[stem + _SUMS] = (statistics.mean_square * count).reshape(1, -1).astype(np.float32)
        tensors[stem + _COUNTS] = np.full((1, 1), count, np.float32)
    tokens = max((statistics.tokens for statistics in found.values()), default=0)
    keys: list[gguf_layout.Key] = [
        ("general.type", "STRING", "imatrix"),
        ("imatrix.datasets", "ARRAY:STRING", [dataset]),
        ("imatrix.chunk_count", "UINT32", tokens // max(1, length)),
        ("imatrix.chunk_size", "UINT32", length),
    ]
    layout = gguf_layout.plan(keys, [(views.from_array(name, part), "F32") for name, part in tensors.items()])
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = Writer(partial, layout)
        for name, part in tensors.items():
            writer.put(name, 0, part)
        writer.close()
        os.replace(partial, path)
    except OSError as error:
        raise as_output_error(error, path) from error
    finally:
        with suppress(OSError):  # there may be no folder that it could lie in
            partial.unlink()


def read(path: Path, checkpoint: Checkpoint) -> dict[str, Statistics]:
    """Mean squares by tensor name, for the matrices of this model that the file knows.

    Raises InputError where it is no such file, belongs to another model, or holds what no sum of squares is.
    """
    if not path.is_file():
        raise InputError(f"--stats {path}: does not exist")
    if not gguf.is_gguf(path) or path.read_bytes()[:4] != gguf.MAGIC:
        raise InputError(
            f"--stats {path}: is no importance matrix in GGUF; llama.cpp's old .dat files can be turned into "
            "one by `llama-imatrix --in-file OLD -o NEW.gguf`"
        )
    file = gguf.read(path)
    if file.keys.get("general.type") != "imatrix" and not any(name.endswith(_SUMS) for name in file.tensors):
        raise InputError(f"--stats {path}: is a GGUF file, but no importance matrix")
    found = {}
    for name, tensor in checkpoint.tensors.items():
        stem = next((s for s in (_gguf_name(checkpoint, name), name) if s + _SUMS in file.tensors), None)
        if stem is None or len(tensor.shape) != 2:
            continue
        sums, counts = _values(file, stem + _SUMS), _values(file, stem + _COUNTS)
        if sums.size != tensor.columns:
            raise InputError(
                f"--stats {path}: {stem} has {sums.size} columns, but the model's {tensor.columns}; it was "
                "made from another model"
            )
        if not (np.isfinite(sums).all() and (sums >= 0).all() and counts.size == 1 and counts[0] > 0):
            raise InputError(f"--stats {path}: {stem} holds no sums of squares; collect it again")
        found[name] = Statistics((sums / counts[0]).astype(np.float32), int(counts[0]))
    if not found:
        raise InputError(
            f"--stats {path}: knows none of this model's matrices; it was made from another model"
        )
    return found


def missing(statistics: Mapping[str, Statistics], checkpoint: Checkpoint) -> str:
    """What is to be told of matrices within layers of which there are no statistics; empty if nothing is."""
    if checkpoint.architecture is None:
        return ""
    architecture = archs.by_name(checkpoint.architecture)
    found = []
    for name, tensor in checkpoint.tensors.items():
        match = architecture.match(name)
        within = match is not None and match.layer is not None and not match.role.endswith("rel_bias")
        if within and len(tensor.shape) == 2 and name not in statistics:
            found.append(name)
    if not found:
        return ""
    return (
        f"knows nothing of {len(found)} matrices within layers, {found[0]} the first; their scales are "
        "searched without it (was it made from another model?)"
    )


def _values(file: gguf.GgufFile, name: str) -> Any:
    stored = file.tensors.get(name)
    if stored is None or stored.type != "F32":
        raise InputError(f"{file.file.path}: lacks {name} in F32; collect the statistics again")
    return np.frombuffer(file.file.bytes(stored.offset, stored.size_bytes), "<f4").astype(np.float64)


def _gguf_name(checkpoint: Checkpoint, name: str) -> str:
    """A tensor's name in GGUF; its own where the architecture is not described."""
    match = archs.by_name(checkpoint.architecture).match(name) if checkpoint.architecture else None
    return (match.gguf if match else "") or name
