"""Numba's decorators as every kernel uses them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
# What only kernels call needs no entry from Python and no copy on disk: a third less to compile.
_INSIDE = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: F) -> F:
    """Compile on first use, keep the machine code on disk, and let other threads run meanwhile.

    Never fast-math: results must not depend on the CPU.
    """
    compiled: Any = njit(nogil=True)(function)
    try:
        compiled.enable_caching()
    except RuntimeError:  # no folder can be written: then every process compiles for itself
        return compiled  # type: ignore[no-any-return]
    # Numba would keep using machine code whose helpers, in other files, have changed since.
    file = compiled._cache._cache_file
    file._source_stamp = (file._source_stamp, _sources())
    return compiled  # type: ignore[no-any-return]


def helper(function: F) -> F:
    """For functions that only kernels call."""
    compiled: F = njit(**_INSIDE)(function)
    return compiled


def inlined(function: F) -> F:
    """As `helper`, for what is called for every group or element: copied into its callers."""
    compiled: F = njit(forceinline=True, **_INSIDE)(function)
    return compiled


@lru_cache
def _sources() -> str:
    """A digest of this folder's files, where all helpers live."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
