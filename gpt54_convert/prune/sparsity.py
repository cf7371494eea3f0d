"""Single weights of the matrices in the layers made zero; shapes and sizes stay what they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core import discover
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import STORAGE, from_float32, to_float32
from gpt54_convert.core.passes import Context
from gpt54_convert.core.tensor import CHUNK_BYTES, LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.prune.evidence import described
from gpt54_convert.prune.needs import measured, measuring
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.patterns import Pattern

CRITERIA = "gpt54_convert.prune.criteria"


def targets(checkpoint: Checkpoint, pattern: Pattern) -> list[str]:
    """The matrices that become sparse: all of the layers' (no embedding, head, norm or position bias).

    Raises UsageError where one of them cannot have the pattern.
    """
    found = [
        name
        for name, match in described(checkpoint).items()
        if match.layer is not None
        and len(match.weight.shape) == 2
        and not match.is_bias
        and not match.weight.only_first
    ]
    for name in found:
        problem = pattern.misfit(checkpoint.tensors[name].columns)
        if problem:
            raise UsageError(f"--sparsity {pattern.text}: {problem} ({name}); give a share like 0.5")
    return found


def sparsify(
    checkpoint: Checkpoint, pattern: Pattern, criterion: str, context: Context, calibration: Calibration
) -> Checkpoint:
    """The same model with zeros; weights are chosen by what flows into them in the model as it is given."""
    names, way = targets(checkpoint, pattern), discover.load(CRITERIA, criterion)
    made: Mapping[str, LazyTensor]
    if way.NEEDS == "factor":
        made = _solved(checkpoint, names, way, pattern, context, calibration)
    else:
        energy: Mapping[str, Any] = {}
        if way.NEEDS == "energy":
            energy = measured("flows", checkpoint, context, calibration)
        made = {name: _masked(checkpoint.tensors[name], way, energy.get(name), pattern) for name in names}
    return checkpoint.with_tensors({**checkpoint.tensors, **made})


def _masked(
    tensor: LazyTensor, way: ModuleType, statistic: NDArray[Any] | None, pattern: Pattern
) -> LazyTensor:
    """A view whose rows lose weights as they are read; what stays keeps its bits."""

    def read(start: int, stop: int) -> NDArray[Any]:
        bits = tensor.rows(start, stop)
        kept = way.sparse(to_float32(bits, tensor.dtype), statistic, pattern) != 0
        return np.where(kept, bits, bits.dtype.type(0))

    return _plain(tensor, read)


def _plain(tensor: LazyTensor, read: Any) -> LazyTensor:
    return replace(tensor, read=read, grid=None, read_codes=None, storage="", storage_bytes=None)


def _solved(
    checkpoint: Checkpoint,
    names: list[str],
    way: ModuleType,
    pattern: Pattern,
    context: Context,
    calibration: Calibration,
) -> dict[str, LazyTensor]:
    """Tensors solved one after another into files of the workspace; those that are there already stay."""
    context.workspace.mkdir(parents=True, exist_ok=True)
    told = f"{way.__name__} {pattern.text} {calibration}"
    files = {
        name: context.workspace / f"sparse-{hashlib.sha256(f'{name} {told}'.encode()).hexdigest()[:24]}"
        for name in names
    }
    missing = [name for name in names if not files[name].exists()]
    if missing:
        moments = measuring("moments").second_moments(checkpoint, missing, context, calibration)
        total = sum(4 * checkpoint.tensors[name].size for name in missing)
        with context.report.progress("choosing zeros", total) as advance:
            for sharing, matrix in moments:
                factor = inverse_factor(matrix)
                for name in sharing:
                    _solve(checkpoint.tensors[name], way, factor, pattern, files[name], context.threads)
                    advance(4 * checkpoint.tensors[name].size)
    return {
        name: _plain(tensor, _from_file(tensor, files[name]))
        for name, tensor in checkpoint.tensors.items()
        if name in files
    }


def inverse_factor(moments: NDArray[Any], damping: float = 0.01) -> NDArray[np.float64]:
    """The upper Cholesky factor of the inverse of `moments` [in, in], damped by a share of their mean.

    Inputs that are always zero get 1 on the diagonal, as in SparseGPT: their weights do not matter.
    """
    moments = np.array(moments, np.float64)
    diagonal = np.einsum("ii->i", moments)
    diagonal[diagonal == 0] = max(1.0, float(diagonal.mean()))
    diagonal += damping * diagonal.mean()
    inverse = np.linalg.inv(moments)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def _solve(
    tensor: LazyTensor, way: ModuleType, factor: NDArray[Any], pattern: Pattern, path: Path, threads: int
) -> None:
    def solved(rows: tuple[int, int]) -> bytes:
        return from_float32(way.sparse(tensor.float_rows(*rows), factor, pattern), tensor.dtype).tobytes()

    workers = threads or len(os.sched_getaffinity(0))
    step = max(tensor.row_align, -(-tensor.row_count // workers))
    parts = tensor.chunks(min(CHUNK_BYTES, 4 * step * tensor.columns))
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file, ThreadPoolExecutor(workers) as pool:
        for chunk in pool.map(solved, parts):
            file.write(chunk)
    os.replace(partial, path)


def _from_file(tensor: LazyTensor, path: Path) -> Any:
    kind, columns = STORAGE[tensor.dtype], tensor.columns

    def read(start: int, stop: int) -> NDArray[Any]:
        count = (stop - start) * columns
        values = np.fromfile(path, kind, count, offset=start * columns * kind.itemsize)
        return values.reshape(stop - start, *tensor.shape[1:])

    return read
