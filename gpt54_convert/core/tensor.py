"""Tensors that are declared now and read later, a range of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.dtypes import STORAGE, itemsize, to_float32
from gpt54_convert.errors import InputError

# Float32 bytes of one chunk of rows: small enough to stay in a core's cache share, large enough that
# calls cost nothing (4 MiB measured fastest for reading and quantizing alike).
CHUNK_BYTES = 4 << 20


class Quantized(Protocol):
    """What a tensor that is already on a grid hands out; see `quantize.qtensor.QTensor`."""

    def dequantize(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class LazyTensor:
    """A named tensor whose rows are read on demand and never kept.

    shape: of the whole tensor; a row is one index of the first axis (a scalar has one row).
    dtype: a name of `core.dtypes.STORAGE`; what `read` returns has that storage type.
    read: `read(start, stop)` gives rows [start, stop), shape [stop - start, *shape[1:]].
    grid: the grid's name where the source holds codes; `read` then gives dequantized float32.
    read_codes: `read_codes(start, stop)` gives those codes, for lossless copies.
    storage, storage_bytes: what the source calls its type and how many bytes it holds there, where that is
        not simply the dtype (a GGUF type without a grid of ours, packed codes).
    row_align: chunks start at multiples of it (whole heads, where rows are permuted within heads).
    column_read: reading some rows costs as much as reading all of them (a transposed file layout).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], NDArray[Any]]
    grid: str | None = None
    read_codes: Callable[[int, int], Quantized] | None = None
    storage: str = ""
    storage_bytes: int | None = None
    row_align: int = 1
    column_read: bool = False

    @property
    def row_count(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor in its declared dtype."""
        return self.size * itemsize(self.dtype)

    @property
    def stored_as(self) -> str:
        """The source's own name of the storage type, for people."""
        return self.storage or self.grid or self.dtype

    @property
    def source_bytes(self) -> int:
        """Bytes that the tensor takes in the source."""
        return self.size_bytes if self.storage_bytes is None else self.storage_bytes

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as stored, checked against what was declared.

        Raises InputError where the source gives another shape or type (a truncated or changed file).
        """
        data = self.read(start, stop)
        expected = (stop - start, *self.shape[1:])
        if data.shape != expected or data.dtype != STORAGE[self.dtype]:
            raise InputError(
                f"tensor {self.name}: rows {start}–{stop} read as {data.dtype}{list(data.shape)}, declared "
                f"{self.dtype}{list(expected)}; the file changed while it was being read"
            )
        return data

    def float_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 [stop - start, columns]."""
        return to_float32(self.rows(start, stop), self.dtype).reshape(stop - start, -1)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose float32 form stays near `chunk_bytes` (8 times that for column reads)."""
        if self.column_read:
            chunk_bytes *= 8
        step = max(1, chunk_bytes // max(1, 4 * self.columns))
        step = max(self.row_align, step - step % self.row_align)
        for start in range(0, self.row_count, step):
            yield start, min(start + step, self.row_count)

    def renamed(self, name: str) -> LazyTensor:
        """The same tensor under another name."""
        return replace(self, name=name)
