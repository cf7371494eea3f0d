"""Runtimes that answer with logits; each file beside this one drives one of them.

A runner's file has `CONTAINERS` (those it opens), `NEEDS` (packages), `INSTALL` (what to type where one is
missing) and `open_runner(path, source, context, threads) -> Runner`.  It may import its runtime at the top:
it is loaded only when an artifact asks for it.  Where its kernels round what enters products and need not,
it has `open_exact(path, source, threads)`, a context manager with `logits`; and `second(path)`, a path or
None: a second graph for other loaders, which `open_second(path, threads, exactly)` opens likewise.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt54_convert.core import discover
from gpt54_convert.errors import MeasureError, UnsupportedError

__all__ = ["containers", "for_container", "load", "missing"]

REFERENCE = "torch_reference"


def for_container(container: str) -> ModuleType:
    """The runner of a container.

    Raises UnsupportedError where there is none, MeasureError where its runtime is not installed.
    """
    for name in discover.names(__name__):
        if container in containers(name):
            return load(name)
    raise UnsupportedError(f"there is no runtime for {container} artifacts here; nothing could be run")


def containers(name: str) -> tuple[str, ...]:
    """CONTAINERS of a runner, read without importing it: its runtime may be missing."""
    found = _constant(name, "CONTAINERS")
    return tuple(found) if found else ()


def load(name: str) -> ModuleType:
    """The runner in the file `name`; MeasureError with what to type where its runtime is missing."""
    try:
        return discover.load(__name__, name)
    except ImportError as error:
        missing = error.name or str(error)
        raise MeasureError(
            f"{missing} is not installed, so nothing could be run; {_constant(name, 'INSTALL')}"
        ) from error


def missing(container: str) -> dict[str, str]:
    """Packages that running an artifact beside its model would need and that are not here: what to type.

    Nothing is imported for it.
    """
    wanted = [name for name in discover.names(__name__) if container in containers(name)] + [REFERENCE]
    return {
        package: _constant(name, "INSTALL")
        for name in wanted
        for package in _constant(name, "NEEDS")
        if not _installed(package)
    }


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # None stands in sys.modules in its place
        return False


def _constant(name: str, wanted: str) -> Any:
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == wanted for target in node.targets
        ):
            return ast.literal_eval(node.value)
    return None
