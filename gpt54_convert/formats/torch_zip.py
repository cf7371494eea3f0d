"""PyTorch checkpoints (`torch.save`'s zip form), read without torch and without running their pickle.

The archive holds `data.pkl`, which describes the tensors, and one stored member per storage with the raw
elements; rows are read straight from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core import views
from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.formats import _pickle, _zip
from gpt54_convert.formats._file import ReadFile
from gpt54_convert.formats._pickle import PickleError, StoredTensor

PICKLE_LIMIT = 64 << 20
# Under which keys training scripts put the weights, where the file holds more than those.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_ADVICE = "save the model again with safetensors (save_pretrained does)"


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file by name, in the order of its dict, unread.

    Tensors that are the same bytes under two names (tied weights) share one `read` function.
    Raises InputError for anything damaged or hostile, UnsupportedError for layouts that cannot be streamed.
    """
    file = ReadFile.at(path)
    if file.size_bytes < 4 or file.bytes(0, 4) != b"PK\x03\x04":
        raise InputError(
            f"{path}: is no zip archive, so no torch checkpoint or one of torch before 1.6, which "
            f"cannot be read safely; {_ADVICE}"
        )
    members = _zip.members(file)
    prefix = _prefix(path, members)
    _check_byte_order(file, members.get(prefix + "byteorder"))
    pickle = members[prefix + "data.pkl"]
    if pickle.size_bytes > PICKLE_LIMIT:
        raise InputError(f"{path}: data.pkl has {pickle.size_bytes} bytes, at most {PICKLE_LIMIT} are sane")
    try:
        content = _pickle.load(file.bytes(pickle.offset, pickle.size_bytes))
    except PickleError as error:
        raise InputError(f"{path}: data.pkl {error}; if you trust the file, {_ADVICE}") from error
    seen: dict[StoredTensor, LazyTensor] = {}
    result = {}
    for name, stored in _tensors(path, content):
        if stored not in seen:
            seen[stored] = _lazy(file, members, prefix, name, stored)
        result[name] = seen[stored].renamed(name)
    return result


def _prefix(path: Path, members: Mapping[str, _zip.Member]) -> str:
    """The folder inside the archive that everything lies in, with its slash."""
    found = [
        name.removesuffix("data.pkl")
        for name in members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(found) != 1:
        raise InputError(f"{path}: is a zip archive but no torch checkpoint (it has no data.pkl)")
    if found[0] + "constants.pkl" in members:
        raise InputError(f"{path}: is a TorchScript program, not a checkpoint; {_ADVICE}")
    return found[0]


def _check_byte_order(file: ReadFile, member: _zip.Member | None) -> None:
    if member is None:  # before torch 2.1: the machine's own, little in practice
        return
    order = file.bytes(member.offset, min(member.size_bytes, 16))
    if order != b"little":
        raise UnsupportedError(f"{file.path}: its byte order is {order!r}, only little is read; {_ADVICE}")


def _tensors(path: Path, content: Any) -> Iterator[tuple[str, StoredTensor]]:
    """The named tensors of the file's dict, or of the dict of weights in it; other entries are skipped."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; {_ADVICE}")
    weights = content
    if not any(isinstance(value, StoredTensor) for value in content.values()):
        inner = (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict))
        weights = next(inner, content)
    found = [(name, value) for name, value in weights.items() if isinstance(value, StoredTensor)]
    if not found:
        raise InputError(f"{path}: holds no tensors by name; {_ADVICE}")
    for name, value in found:
        if not isinstance(name, str):
            raise InputError(f"{path}: a tensor's name is {str(name)[:80]!r}, not text")
        yield name, value


def _lazy(
    file: ReadFile, members: Mapping[str, _zip.Member], prefix: str, name: str, stored: StoredTensor
) -> LazyTensor:
    where = f"{file.path}: tensor {name[:200]!r}"
    storage, shape, strides = stored.storage, stored.shape, stored.strides
    member = members.get(f"{prefix}data/{storage.key}")
    itemsize = STORAGE[storage.dtype].itemsize
    if member is None or member.size_bytes < storage.count * itemsize:
        raise InputError(
            f"{where}: its storage {storage.key[:40]!r} is missing or too short; get the file again"
        )
    if len(strides) != len(shape):
        raise InputError(f"{where}: has {len(shape)} dimensions but {len(strides)} strides")
    if math.prod(shape) == 0:
        if max(shape) > 1 << 31:
            raise InputError(f"{where}: shape {list(shape)} is that of an empty tensor, yet absurdly large")
        empty = np.empty(shape, STORAGE[storage.dtype])
        return LazyTensor(name, shape, storage.dtype, lambda start, stop: empty[start:stop])
    last = stored.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.count:
        raise InputError(f"{where}: reaches element {last} of a storage with {storage.count}; get it again")
    if math.prod(shape) > storage.count:
        raise UnsupportedError(f"{where}: repeats its elements (an expanded tensor); {_ADVICE}")
    base = member.offset + stored.offset * itemsize
    if _streams(shape, strides):
        return _strided(file, name, storage.dtype, base, shape, strides)
    if len(shape) == 2 and _streams(shape[::-1], strides[::-1]):
        return views.transposed(_strided(file, name, storage.dtype, base, shape[::-1], strides[::-1]))
    raise UnsupportedError(f"{where}: its layout (strides {list(strides)}) cannot be streamed; {_ADVICE}")


def _streams(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True where every row lies in a range of its own, in order and without big gaps inside."""
    span = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride < span:
            return False
        span += (size - 1) * stride
    return _row_span(shape, strides) <= 4 * math.prod(shape[1:])


def _row_span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of one row."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True))


def _strided(
    file: ReadFile, name: str, dtype: str, base: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> LazyTensor:
    """A tensor whose rows are read as the range from their first to their last element, gaps included."""
    storage, inner = STORAGE[dtype], shape[1:]
    row_stride, row_span = strides[0] if strides else 1, _row_span(shape, strides)
    byte_strides = tuple(stride * storage.itemsize for stride in (row_stride, *strides[1:]))

    def read_near(start: int, stop: int) -> NDArray[Any]:
        count = (stop - start - 1) * row_stride + row_span
        flat = file.array(base + start * row_stride * storage.itemsize, (count,), storage)
        rows = np.lib.stride_tricks.as_strided(flat, (stop - start, *inner), byte_strides, writeable=False)
        return np.ascontiguousarray(rows)

    def read_rows(start: int, stop: int) -> NDArray[Any]:
        if stop <= start:
            return np.empty((0, *inner), storage)
        if row_stride <= 4 * row_span:
            return read_near(start, stop)
        return np.concatenate([read_near(row, row + 1) for row in range(start, stop)])  # far apart

    return LazyTensor(name, shape, dtype, read_rows)
