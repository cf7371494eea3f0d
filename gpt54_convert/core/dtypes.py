"""The storage types of float checkpoints, in NumPy terms; bfloat16 and float8 travel as bit patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError

# canonical name -> the NumPy type that carries its bits
STORAGE: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")


def is_float(dtype: str) -> bool:
    """True for every dtype that holds weights rather than indices or codes."""
    return dtype in FLOATS


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return STORAGE[dtype].itemsize


def _e4m3_table() -> NDArray[np.float32]:
    """All 256 values of float8 E4M3 (OCP FP8: bias 7, no infinity, 0x7f and 0xff are NaN)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(float) - 10)
    )
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


def to_float32(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The values of `bits`, stored as `dtype`, in float32; exact for every float of 32 bits or fewer."""
    if dtype == "float32":
        return np.asarray(bits, np.float32)
    if dtype == "bfloat16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return np.asarray(wide.view(np.float32))
    if dtype == "float8_e4m3":
        return np.asarray(_e4m3_table()[bits], np.float32)
    if dtype == "float8_e5m2":
        return np.asarray((bits.astype(np.uint16) << 8).view(np.float16), np.float32)
    return np.asarray(bits, np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`values` stored as `dtype`, rounded to nearest even; float16 overflow becomes infinity."""
    if dtype == "float32":
        return values
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        # Adding to a NaN's bits could carry it into infinity: keep it a (quiet) NaN.
        rounded[np.isnan(values)] = 0x7FC0
        return rounded.astype(np.uint16)
    if dtype in ("float16", "float64"):
        with np.errstate(over="ignore"):
            return values.astype(STORAGE[dtype])
    raise InternalError(f"no conversion from float32 to {dtype}")
