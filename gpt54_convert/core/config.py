"""Reading config.json: nested keys and the old and new spellings of one thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; alternatives are separated by `|`; None where there is none."""
    for alternative in key.split("|"):
        value: Any = config
        for part in alternative.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None
