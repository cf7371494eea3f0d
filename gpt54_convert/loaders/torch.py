"""Model folders and lone files of torch checkpoints (`pytorch_model*.bin`, `.bin`, `.pt`, `.pth`)."""

from __future__ import annotations

from pathlib import Path

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.formats import torch_zip
from gpt54_convert.loaders import _folder, _model

RANK = 30  # after safetensors: a folder often holds both
DESCRIPTION = "a folder with config.json and pytorch_model*.bin, or a lone .bin, .pt or .pth file"
INDEX, SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
_SUFFIXES = (".bin", ".pt", ".pth")


def matches(path: Path) -> bool:
    """True where `path` is a file named like a torch checkpoint, or a folder that holds one."""
    if path.is_dir():
        return _folder.has_file(path, INDEX) or _folder.has_file(path, SINGLE)
    return path.suffix in _SUFFIXES


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, read without torch and without running its pickle.

    A lone file has no config and so no architecture.  Raises InputError for anything damaged or hostile.
    """
    if not path.is_dir():
        tensors = _model.without_twins(torch_zip.read(path))
        return Checkpoint(tensors, {}, Source(path, "torch", (path,)))
    side = _folder.side_files(path)
    files, weight_map = _folder.weight_files(path, INDEX, SINGLE)
    parts = [(file, torch_zip.read(file)) for file in files]
    tensors = _folder.merge(parts)
    if weight_map is not None:
        _folder.check_index(path, weight_map, ((name, file.name) for file, part in parts for name in part))
        files = [*files, path / INDEX]
    return _model.build(Source(path, "torch", side.files + tuple(files)), tensors, side)
