"""GGUF files that hold a tokenizer and nothing else, written and read with the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from gpt54_convert.tokenizers import GgufKey


def write(path: Path, keys: Iterable[GgufKey], architecture: str = "llama") -> Path:
    """A GGUF file without tensors, as llama.cpp loads it with vocab_only."""
    writer = GGUFWriter(path, architecture)
    for key in keys:
        kind, _, inner = key.type.partition(":")
        sub_type = GGUFValueType[inner] if inner else None
        writer.add_key_value(key.key, key.value, GGUFValueType[kind], sub_type=sub_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def read(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file, as plain Python values."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
