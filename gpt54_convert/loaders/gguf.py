"""GGUF files, whole or in shards, of any type that the gguf package can dequantize."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt54_convert import archs, tokenizers
from gpt54_convert.archs import Architecture
from gpt54_convert.archs import _metadata as metadata
from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.formats import gguf
from gpt54_convert.loaders import _gguf_tensors, _model
from gpt54_convert.loaders._folder import SideFiles

RANK = 30
DESCRIPTION = "a .gguf file, its first shard, or a folder that holds one model as GGUF"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_FREQUENCIES = "rope_freqs.weight"

Raw = dict[str, LazyTensor]


def matches(path: Path) -> bool:
    """True for a file that begins as GGUF does or is called .gguf, and for a folder that holds one."""
    if path.is_dir():
        return any(path.glob("*.gguf"))
    return path.suffix == ".gguf" or gguf.is_gguf(path)


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`; keys and tensor tables are read now, weights later.

    Raises InputError for anything damaged, missing or contradictory, UnsupportedError for an architecture or
    tensor type that is not described; the same for a tokenizer, when it is asked for.
    """
    files = _files(path)
    parts = [gguf.read(file) for file in files]
    keys = parts[0].keys
    _check_shards(files, parts)
    raw = _gguf_tensors.merged(parts)
    architecture = archs.by_gguf(_architecture_name(files[0], keys))
    config = _config(architecture, files[0], keys, raw)
    tensors = _canonical(architecture, config, keys, raw)
    side = SideFiles(
        config, metadata.to_generation_config(config, keys), TokenizerFiles(keys, config), tuple(files)
    )
    checkpoint = _model.build(Source(path, "gguf", tuple(files)), tensors, side)
    return checkpoint


def _architecture_name(file: Path, keys: Mapping[str, Any]) -> str:
    name = keys.get("general.architecture")
    if not isinstance(name, str):
        raise InputError(f"{file}: lacks the key general.architecture, so what model it is is unknown")
    return name


def _files(path: Path) -> list[Path]:
    """All files of the model: the file itself, or its shards in order."""
    if path.is_dir():
        path = _in_folder(path)
    found = _SHARD.fullmatch(path.name)
    if not found or int(found[3]) < 2:
        return [path]
    if int(found[2]) != 1:
        raise InputError(f"{path}: is not the first shard; name {found[1]}-00001-of-{found[3]}.gguf")
    return [path.with_name(f"{found[1]}-{i:05d}-of-{found[3]}.gguf") for i in range(1, int(found[3]) + 1)]


def _in_folder(folder: Path) -> Path:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    shards = [(name, _SHARD.fullmatch(name)) for name in names]
    first = [name for name, found in shards if not found or int(found[2]) == 1]
    if len(first) != 1:
        shown = ", ".join((first or names)[:5])
        raise InputError(f"{folder}: holds {len(first)} models as GGUF ({shown}); name one of the files")
    return folder / first[0]


def _check_shards(files: list[Path], parts: list[gguf.GgufFile]) -> None:
    if len(parts) == 1 and parts[0].keys.get("split.count", 1) in (0, 1):
        return
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        said = part.keys.get("split.no"), part.keys.get("split.count")
        if said != (number, len(files)):
            raise InputError(
                f"{file}: says that it is shard {said[0]} of {said[1]} (counted from 0), but its name places "
                f"it as {number} of {len(files)}; get the shards again under their own names"
            )
    total, declared = sum(len(part.tensors) for part in parts), parts[0].keys.get("split.tensors.count")
    if declared is not None and declared != total:
        raise InputError(
            f"{files[0]}: split.tensors.count is {declared}, but the {len(files)} shards hold {total} "
            "tensors; get them again"
        )


def _config(
    architecture: Architecture, file: Path, keys: Mapping[str, Any], raw: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    shapes = {name: tensor.shape for name, tensor in raw.items()}
    extra: dict[str, Any] = {}
    if _FREQUENCIES in raw:
        values = raw[_FREQUENCIES]
        extra["rope_freqs"] = values.float_rows(0, min(values.row_count, 1 << 16)).reshape(-1)
    try:
        return metadata.to_config(architecture, {**keys, **extra}, shapes)
    except (TypeError, ArithmeticError) as error:
        raise InputError(f"{file}: its keys make no sense ({error}); get the file again") from error


def _canonical(
    architecture: Architecture, config: Mapping[str, Any], keys: Mapping[str, Any], raw: Raw
) -> Raw:
    """The tensors under transformers' names, with GGUF's changes undone."""
    sizes = _model._sizes(architecture, config)
    by_name = architecture.gguf_names(sizes)
    generated = architecture.gguf_tensors(config)
    result = {}
    for name, tensor in raw.items():
        if name in generated or name == _FREQUENCIES:
            continue
        match = by_name.get(name)
        if match is None:
            raise UnsupportedError(
                f"tensor {name}: the description of {architecture.gguf} has no such tensor (for these sizes);"
                f" if it should, add it to gpt54_convert/archs/{architecture.name}.py"
            )
        scale = architecture.gguf_scales(config).get(match.hf)
        own = keys.get(metadata.UNSCALED_KEY + name) if scale is not None else None
        result[match.hf] = _gguf_tensors.undone(tensor, match, sizes, own)
    return result


class TokenizerFiles(Mapping[str, bytes]):
    """The tokenizer's files, rebuilt when somebody first asks: a large vocabulary takes seconds."""

    def __init__(self, keys: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._keys, self._config = keys, config
        self._lock = threading.Lock()
        self._built: dict[str, bytes] | None = None

    def __bool__(self) -> bool:
        """Whether there is a tokenizer, without building it."""
        return self._keys.get("tokenizer.ggml.model", "no_vocab") not in ("no_vocab", "none")

    def _files(self) -> dict[str, bytes]:
        with self._lock:
            if self._built is None:
                self._built = tokenizers.from_gguf(self._keys, config=self._config) if self else {}
            return self._built

    def __getitem__(self, name: str) -> bytes:
        return self._files()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files())

    def __len__(self) -> int:
        return len(self._files())
