"""Numba's decorator as every kernel uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first use, keep the machine code on disk, and let other threads run meanwhile.

    Never fast-math: results must not depend on the CPU.
    """
    compiled: F = njit(cache=True, nogil=True)(function)
    return compiled


def inlined(function: F) -> F:
    """As `helper`, for what is called for every group or element: copied into its callers."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: F = njit(nogil=True, forceinline=True, **options)(function)
    return compiled


def helper(function: F) -> F:
    """For functions that only kernels call: no entry from Python, no copy on disk; a third less to compile.

    Numba does not notice when a helper in another file changes: touch the kernel's file, or clear the cache.
    """
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: F = njit(nogil=True, **options)(function)
    return compiled
