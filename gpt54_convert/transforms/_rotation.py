"""Rotations that spread each channel over all others, applied to weights a few rows at a time.

Q = diag(±1) (A ⊗ B) with A a Hadamard matrix (Sylvester's) and B one times, where the size is no power of
two, the Hartley matrix of the odd rest: orthogonal, and quick to multiply by.  Sources: Ashkboos et al.,
"QuaRot" (2024), Tseng et al., "QuIP#" (2024); Bracewell, "Discrete Hartley transform" (1983).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.tensor import CHUNK_BYTES, LazyTensor
from gpt54_convert.errors import InputError
from gpt54_convert.transforms._folds import rewritten

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rotation:
    """Q [size, size].  signs [size]; outer [a, a] and inner [b, b] orthogonal, a · b = size."""

    signs: Floats
    outer: Floats
    inner: Floats

    @property
    def size(self) -> int:
        return len(self.signs)

    def turn(self, vectors: Floats) -> Floats:
        """x Q of every stretch of `size` values, [.., n · size]."""
        parts = (vectors.reshape(-1, self.size) * self.signs).reshape(-1, len(self.outer), len(self.inner))
        turned: Floats = np.matmul(self.outer.T, parts @ self.inner).reshape(vectors.shape)
        return turned

    def columns(self, tensor: LazyTensor) -> LazyTensor:
        """W Q of a matrix that reads channels, or of a table of vectors; in blocks where W is wider."""
        return rewritten(tensor, lambda start, stop: self.turn(finite_rows(tensor, start, stop)))

    def rows(self, tensor: LazyTensor) -> LazyTensor:
        """Qᵀ W of a matrix (or bias) that writes all channels.

        Each row needs all of W: it is read through in chunks as often as rows are asked for.
        """
        inner, columns = len(self.inner), tensor.columns
        step = inner * max(1, CHUNK_BYTES // (4 * inner * columns))

        def read(start: int, stop: int) -> Floats:
            first, last = start // inner, -(-stop // inner)
            found = np.zeros((last - first, inner * columns), np.float32)
            for low in range(0, self.size, step):
                high = min(low + step, self.size)
                part = finite_rows(tensor, low, high) * self.signs[low:high, None]
                part = np.matmul(self.inner.T, part.reshape(-1, inner, columns))
                share = self.outer[low // inner : high // inner, first:last]
                found += share.T @ part.reshape(len(part), -1)
            skipped = start - first * inner
            rows = found.reshape(-1, columns)[skipped : skipped + stop - start]
            return rows.reshape(stop - start, *tensor.shape[1:])

        turned = rewritten(tensor, read)
        return replace(turned, row_align=lcm(tensor.row_align, inner), column_read=True)

    def row_groups(self, tensor: LazyTensor, first_row: int) -> LazyTensor:
        """Qᵀ of every `size` rows (a head's) from `first_row` on, itself a multiple of `size`."""
        matrix = self.turn(np.eye(self.size, dtype=np.float32))

        def read(start: int, stop: int) -> Floats:
            low = start - start % self.size
            high = min(stop + -stop % self.size, tensor.row_count)
            values = finite_rows(tensor, low, high).copy()
            from_here = max(0, first_row - low)
            heads = values[from_here:].reshape(-1, self.size, tensor.columns)
            values[from_here:] = np.matmul(matrix.T, heads).reshape(-1, tensor.columns)
            return values[start - low : stop - low].reshape(stop - start, *tensor.shape[1:])

        return replace(rewritten(tensor, read), row_align=lcm(tensor.row_align, self.size))


def rotation(size: int, seed: int) -> Rotation:
    """The rotation of that size; the seed draws its signs."""
    odd = size // (size & -size)
    power = (size // odd).bit_length() - 1
    outer = max(range(power + 1), key=lambda bits: -((1 << bits) + (size >> bits)))
    inner = np.kron(_hadamard(power - outer), _hartley(odd))
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), size)
    return Rotation(signs, _hadamard(outer).astype(np.float32), inner.astype(np.float32))


def _hadamard(power: int) -> NDArray[np.float64]:
    """Sylvester's, of size 2 ** power, its rows of length 1."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.kron(matrix, np.array([[1, 1], [1, -1]]) / np.sqrt(2))
    return matrix


def _hartley(size: int) -> NDArray[np.float64]:
    """(cos + sin)(2π j k / size) / √size: symmetric and orthogonal, and of odd size without zeros."""
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    matrix: NDArray[np.float64] = (np.cos(angle) + np.sin(angle)) / np.sqrt(size)
    return matrix


def finite_rows(tensor: LazyTensor, start: int, stop: int) -> Floats:
    """Rows [start, stop) [·, columns]; a rotation would spread a NaN over all channels.

    Raises InputError where one is not finite.
    """
    rows = tensor.float_rows(start, stop)
    if not np.isfinite(rows).all():
        row = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise InputError(
            f"tensor {tensor.name}: row {row} holds a weight that is not finite, and a rotation would spread "
            "it; get the weights again"
        )
    return rows
