"""Architectures by file: which one a config describes, which one a GGUF file names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs._table import Architecture, Key, Match, Weight
from gpt54_convert.core import discover
from gpt54_convert.errors import UnsupportedError

__all__ = ["Architecture", "Key", "Match", "Weight", "by_gguf", "by_name", "for_config", "names"]


def names() -> tuple[str, ...]:
    """The keys of all described architectures."""
    return discover.names(__name__)


def by_name(name: str) -> Architecture:
    """The description in the file `name`."""
    found: Architecture = discover.load(__name__, name).ARCHITECTURE
    return found


def for_config(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture that serves a config.json, by its model_type; None where nobody described it."""
    model_type = config.get("model_type")
    for name in names():
        if model_type in by_name(name).model_types:
            return by_name(name)
    return None


def by_gguf(gguf_name: str) -> Architecture:
    """The architecture of a GGUF file, by `general.architecture`; UnsupportedError for another one."""
    for name in names():
        if gguf_name and by_name(name).gguf == gguf_name:
            return by_name(name)
    known = ", ".join(sorted(by_name(name).gguf for name in names() if by_name(name).gguf))
    raise UnsupportedError(
        f"GGUF architecture {gguf_name!r} is not described (described: {known}); "
        f"to add it, write one table gpt54_convert/archs/{gguf_name}.py as docs/architectures.md shows"
    )
