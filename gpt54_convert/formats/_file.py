"""Files that are read by position, a bounded range at a time."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError


@dataclass(frozen=True)
class ReadFile:
    """A regular file as it was when first looked at.

    It is opened for every read and closed again (some microseconds against about a millisecond of reading a
    chunk), so that thousands of shards need no descriptors, threads share nothing, and nothing leaks.
    stamp: inode, size and time of change; a read from a file that differs by then is refused.
    """

    path: Path
    size_bytes: int
    stamp: tuple[int, int, int]

    @classmethod
    def at(cls, path: Path) -> ReadFile:
        """Look at `path`.  Raises InputError where it is missing, unreadable or not a regular file."""
        try:
            # A FIFO must not block us, so the kind is decided before anything is opened.
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file")
        return cls(path, status.st_size, _stamp(status))

    def fill(self, offset: int, out: NDArray[Any]) -> None:
        """Read as many bytes as the contiguous array `out` has, from `offset` on.

        Raises InputError where the file ends before, or has changed since it was first looked at.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        try:
            if _stamp(os.fstat(descriptor)) != self.stamp:
                raise InputError(f"{self.path}: changed while it was being read; start again")
            _fill(descriptor, self.path, offset, out.reshape(-1).view(np.uint8).data)
        finally:
            os.close(descriptor)

    def bytes(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; the caller has bounded `count`."""
        out = np.empty(count, np.uint8)
        self.fill(offset, out)
        return out.tobytes()

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of `shape` stored contiguously at `offset`."""
        out = np.empty(shape, dtype)
        self.fill(offset, out)
        return out


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _fill(descriptor: int, path: Path, offset: int, left: memoryview) -> None:
    while left.nbytes:
        try:
            count = os.preadv(descriptor, [left[: 1 << 30]], offset)
        except OSError as error:
            raise InputError(f"{path}: cannot be read at byte {offset} ({error.strerror})") from error
        if count == 0:
            raise InputError(
                f"{path}: ends at byte {offset}, {left.nbytes} bytes before it should; get the file again"
            )
        left = left[count:]
        offset += count


def read_small(path: Path, limit: int) -> bytes:
    """The whole of a small file.  Raises InputError where it is larger than `limit` bytes."""
    file = ReadFile.at(path)
    if file.size_bytes > limit:
        raise InputError(f"{path}: has {file.size_bytes} bytes, such a file may have {limit} at most")
    return file.bytes(0, file.size_bytes)
