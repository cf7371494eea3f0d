"""A folder of ONNX graphs in ONNX Runtime; see `forward.onnx_model` for how they are run."""

from __future__ import annotations

from pathlib import Path

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters._onnx_exact import exact
from gpt54_convert.exporters._onnx_layout import IN_PLACE
from gpt54_convert.forward.onnx_in_place import InPlaceModel
from gpt54_convert.forward.onnx_model import OnnxModel, files

CONTAINERS = ("onnx",)
NEEDS = ("onnxruntime",)
INSTALL = "pip install onnxruntime"


def open_runner(path: Path, source: Checkpoint, context: int, threads: int) -> OnnxModel:
    """The folder `path`.  Raises InputError where ONNX Runtime cannot load it."""
    del context
    return OnnxModel(path, _kind(source), threads)


def open_exact(path: Path, source: Checkpoint, threads: int) -> OnnxModel:
    """The same, without rounding what enters products."""
    kind = _kind(source)
    return OnnxModel(
        path, kind, threads, {graph.name: exact(graph.read_bytes()) for graph in files(path, kind)}
    )


def second(path: Path) -> Path | None:
    """The graph of a decoder that onnxruntime-genai opens, where there is one."""
    found = path / IN_PLACE
    return found if found.is_file() else None


def open_second(path: Path, threads: int, exactly: bool) -> InPlaceModel:
    """That graph; `exactly`: without rounding.  Raises InputError where ONNX Runtime cannot load it."""
    return InPlaceModel(path, threads, exact(path.read_bytes()) if exactly else None)


def _kind(source: Checkpoint) -> str:
    return archs.by_name(source.architecture).kind if source.architecture else "decoder"
