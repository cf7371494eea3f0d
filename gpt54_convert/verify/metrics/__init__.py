"""What is measured; each file beside this one adds columns (one number a token) and figures made of them.

A metric's file has `KIND` (`logits` or `hidden`), `columns(pair) -> {name: [tokens]}` and `FIGURES`.
"""

from __future__ import annotations

from types import ModuleType

from gpt54_convert.core import discover

LOGITS, HIDDEN = "logits", "hidden"


def of_kind(kind: str) -> list[ModuleType]:
    """The metrics of logits or of hidden states."""
    found = [discover.load(__name__, name) for name in discover.names(__name__)]
    return [module for module in found if kind == module.KIND]
