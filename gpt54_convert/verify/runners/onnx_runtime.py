"""A folder of ONNX graphs in ONNX Runtime; see `forward.onnx_model` for how they are run."""

from __future__ import annotations

from pathlib import Path

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters._onnx_layout import IN_PLACE
from gpt54_convert.forward.onnx_in_place import InPlaceModel
from gpt54_convert.forward.onnx_model import OnnxModel

CONTAINERS = ("onnx",)
NEEDS = ("onnxruntime",)
INSTALL = "pip install onnxruntime"


def open_runner(path: Path, source: Checkpoint, context: int, threads: int) -> OnnxModel:
    """The folder `path`.  Raises InputError where ONNX Runtime cannot load it."""
    del context
    kind = archs.by_name(source.architecture).kind if source.architecture else "decoder"
    return OnnxModel(path, kind, threads)


def second(path: Path) -> Path | None:
    """The graph of a decoder that onnxruntime-genai opens, where there is one."""
    found = path / IN_PLACE
    return found if found.is_file() else None


def open_second(path: Path, threads: int) -> InPlaceModel:
    """That graph.  Raises InputError where ONNX Runtime cannot load it."""
    return InPlaceModel(path, threads)
