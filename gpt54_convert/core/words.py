"""Sentences about several things at once."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def not_installed(packages: Iterable[str]) -> str:
    """`torch is not installed`, `torch and onnx are not installed`."""
    names = list(packages)
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} not installed"
