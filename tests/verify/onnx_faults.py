"""Faults put into finished ONNX folders: bytes of their external data, found through the graphs themselves.

Tracing a graph takes seconds, so faults of weights are written into a copy of one good folder; the offsets
come from `onnx_arrays`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx_arrays import places
from safetensors.numpy import load_file


@contextmanager
def opened(folder: Path, name: str) -> Iterator[np.ndarray]:
    """The stored array of an initialiser, written back at the end."""
    file, offset, shape, kind = places(folder)[name]
    array = np.memmap(file, kind, "r+", offset, shape)
    yield array
    array.flush()


def change_codes(folder: Path, name: str, change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Apply a fault of codes to one weight; its manifest goes."""
    (folder / "manifest.json").unlink(missing_ok=True)
    with opened(folder, f"{name}.codes") as codes, opened(folder, f"{name}.scales") as scales:
        change(codes, scales)


def transplant(bad: Path, good: Path, folder: Path) -> None:
    """Write every weight in which the model `bad` differs from `good` into an artifact of `good`."""
    (folder / "manifest.json").unlink(missing_ok=True)
    theirs, ours = load_file(bad / "model.safetensors"), load_file(good / "model.safetensors")
    stored = places(folder)
    for name, old in ours.items():
        new = theirs.get(name, np.zeros_like(old))  # a bias that is not there adds nothing
        if np.array_equal(new, old, equal_nan=False):
            continue
        if name in stored:
            with opened(folder, name) as values:
                values[...] = new
            continue
        kind = "codes" if f"{name}.codes" in stored else "rows"
        codes, scales = _round(new)
        with opened(folder, f"{name}.{kind}") as there:
            there[...] = _pack4(codes).reshape(there.shape)
        with opened(folder, f"{name}.scales") as there:
            there[...] = scales.reshape(there.shape)


def _round(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plain 4-bit rounding in groups of 32: codes [rows, columns] counted from -8, scales."""
    groups = weight.astype(np.float32).reshape(len(weight), -1, 32)
    scales = np.abs(groups).max(axis=2, keepdims=True) / 7
    codes = np.clip(np.round(groups / np.maximum(scales, 1e-12)), -8, 7) + 8
    return codes.astype(np.uint8).reshape(weight.shape), scales.astype(np.float16).astype(np.float32)


def _pack4(codes: np.ndarray) -> np.ndarray:
    return codes[:, ::2] | codes[:, 1::2] << 4
