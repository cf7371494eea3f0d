"""Leaf folders are scanned and a file's name is its key: adding a thing touches one file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from types import ModuleType

from gpt54_convert.errors import InternalError


@lru_cache
def names(package: str) -> tuple[str, ...]:
    """The keys that `package` (a dotted name) offers, sorted, without importing any of them."""
    folder = importlib.import_module(package)
    found = (module.name for module in pkgutil.iter_modules(folder.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """The module behind one key; an import failure is an error, never a skip.

    Raises InternalError for a key that `names` did not offer: callers check the user's words first.
    """
    if name not in names(package):
        raise InternalError(f"{package} has no {name!r}; it has {', '.join(names(package))}")
    return importlib.import_module(f"{package}.{name}")
