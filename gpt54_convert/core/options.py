"""A field of a dataclass that is at once a command-line option, a recipe's key and a row of the docs."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt54_convert.errors import UsageError

MOST_THREADS = 256


def option(default: Any, help_text: str, **extra: Any) -> Any:
    """A field with the words that help, docs and recipes show for it.

    extra: `flags` (further names), `choices`, `metavar`, `is_path`; of a number that may be left out,
    `minimum` (a whole one) or `number` (any); `listed`, the list (`gpt54-convert list`) that shells complete
    it from.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, **extra})


def check_threads(count: int) -> None:
    """Raise UsageError for numbers of threads that no runtime could start, or that would stop a machine."""
    if not 0 <= count <= MOST_THREADS:
        raise UsageError(f"--threads must be 1 to {MOST_THREADS}, or 0 for one per core; it is {count}")


def to_dict(options: Any) -> dict[str, Any]:
    """The fields of such a dataclass as plain data: tuples as lists, paths as text."""
    return {field.name: _plain(getattr(options, field.name)) for field in dataclasses.fields(options)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
