"""ggml's own quantizers (the C library of `libggml-python`) called through ctypes.

Used as an oracle by tests and as the opponent by `tests/benchmarks/`; never by the package itself.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

MISSING = "libggml is missing (pip install libggml-python): nothing was compared with ggml's own code"
# Types whose C quantizer makes use of an importance matrix (Q8_0 and MXFP4 ignore it).
TAKES_IMPORTANCE = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
)


def library_path() -> Path | None:
    """Where libggml-base.so lies, None where it is not installed."""
    spec = find_spec("libggml")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        for name in ("lib64/libggml-base.so", "lib/libggml-base.so"):
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    return None


def available() -> bool:
    """True where libggml can be called; tests skip with `MISSING` otherwise."""
    return library_path() is not None


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise RuntimeError(MISSING)
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        ctypes.c_void_p,  # source, float32
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first element
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # elements of a row
        ctypes.c_void_p,  # importance, float32 [elements of a row], or null
    ]
    return library


def type_of(name: str) -> GGMLQuantizationType:
    """ggml's enum member for `name`, in any case (`q4_k` and `Q4_K` alike)."""
    return GGMLQuantizationType[name.upper()]


def row_bytes(name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements."""
    block, size = GGML_QUANT_SIZES[type_of(name)]
    if columns % block:
        raise ValueError(f"{columns} columns do not divide into {name} blocks of {block}")
    return columns // block * size


def quantize(
    weight: NDArray[np.float32],
    type_name: str,
    importance: NDArray[np.float32] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Bytes [rows, row_bytes] that ggml_quantize_chunk makes of `weight` [rows, columns] float32.

    Runs in the calling thread and releases the GIL.  importance: float32 [columns] or None.
    out: a buffer to reuse, so that a benchmark does not time page faults.
    """
    rows, columns = weight.shape
    if weight.dtype != np.float32 or not weight.flags.c_contiguous:
        raise ValueError("weight must be float32 and C-contiguous")
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.shape != (columns,):
            raise ValueError(f"importance has shape {importance.shape}, not ({columns},)")
    if out is None:
        out = np.empty((rows, row_bytes(type_name, columns)), dtype=np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    arguments: list[Any] = [int(type_of(type_name)), weight.ctypes.data, out.ctypes.data]
    written = _library().ggml_quantize_chunk(*arguments, 0, rows, columns, pointer)
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {type_name}, not {out.nbytes}")
    return out


def dequantize(data: NDArray[np.uint8], type_name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Values float32 [rows, columns] of ggml's bytes `data` [rows, row_bytes]."""
    rows, columns = shape
    data = np.ascontiguousarray(data, dtype=np.uint8)
    if data.size != rows * row_bytes(type_name, columns):
        raise ValueError(f"{data.size} bytes are not {rows} rows of {columns} {type_name} elements")
    kernel = getattr(_library(), "dequantize_row_" + type_name.lower().replace("_k", "_K"))
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    kernel.restype = None
    values = np.empty(shape, dtype=np.float32)
    kernel(data.ctypes.data, values.ctypes.data, rows * columns)
    return values
