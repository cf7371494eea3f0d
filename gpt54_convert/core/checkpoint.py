"""What every step takes and returns: lazy tensors, a config, the tokenizer's files, where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt54_convert.core.tensor import LazyTensor


@dataclass(frozen=True)
class Source:
    """Where a checkpoint came from.

    path: what the user named.  files: every file that was read, for the manifest's hashes.
    container: `safetensors`, `gguf`, `torch` or `compressed-tensors`.
    """

    path: Path
    container: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A model as data; never changed in place.

    tensors: by canonical name (the names of transformers' own state dict), in the order of the source;
        every matrix is [out, in], also where the source stores it transposed.
    config: the content of config.json; {} where there is none (a lone file of tensors).
    generation_config: the content of generation_config.json, or None.
    tokenizer: tokenizer files by name (tokenizer.json, tokenizer_config.json, …), as bytes.
    extras: further files that tell of the weights (the course of a training); model folders carry them.
    architecture: the key of an `archs` file, or None for one that nobody described.
    notes: what was not read of the source, each a sentence for people.
    """

    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    source: Source
    architecture: str | None = None
    generation_config: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extras: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors; a tied head counts once, since it is stored once."""
        return sum(tensor.size for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, LazyTensor]) -> Checkpoint:
        """The same model with other tensors."""
        return replace(self, tensors=tensors)
