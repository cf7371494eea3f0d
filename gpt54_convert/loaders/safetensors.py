"""Model folders and lone files of plain (float) safetensors."""

from __future__ import annotations

from pathlib import Path

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.formats import safetensors
from gpt54_convert.loaders import _folder, _model

RANK = 20  # asked before other containers: of several formats in a folder it is the safest
DESCRIPTION = "a folder with config.json and safetensors weights, or a lone .safetensors file"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def matches(path: Path) -> bool:
    """True where `path` is a .safetensors file, or a folder that holds one."""
    if path.is_dir():
        return _folder.has_file(path, INDEX) or any(path.glob("*.safetensors"))
    return path.suffix == ".safetensors"


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`; nothing but headers, config and tokenizer is read now.

    A lone file has no config and so no architecture: only what needs names alone can be done with it.
    Raises InputError for anything damaged, missing or contradictory.
    """
    if not path.is_dir():
        return Checkpoint(safetensors.read(path), {}, Source(path, "safetensors", (path,)))
    side = _folder.side_files(path)
    tensors, files = read_folder(path)
    return _model.build(Source(path, "safetensors", side.files + files), tensors, side)


def read_folder(folder: Path) -> tuple[dict[str, LazyTensor], tuple[Path, ...]]:
    """The tensors of a folder as its files name them, and those files."""
    files, weight_map = _folder.weight_files(folder, INDEX, SINGLE)
    parts = [(file, safetensors.read(file)) for file in files]
    tensors = _folder.merge(parts)
    if weight_map is not None:
        held = ((name, file.name) for file, part in parts for name in part)
        _folder.check_index(folder, weight_map, held)
        files = [*files, folder / INDEX]
    return tensors, tuple(files)
