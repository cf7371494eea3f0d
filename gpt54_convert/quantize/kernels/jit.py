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
    """As `kernel`, for small helpers called for every group or element: copied into their callers."""
    compiled: F = njit(cache=True, nogil=True, forceinline=True)(function)
    return compiled
