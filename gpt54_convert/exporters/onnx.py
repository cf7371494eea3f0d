"""ONNX graphs in optimum's folder layout, weights in files of external data, codes as MatMulNBits.

The graphs are transformers' own code, traced without weights (`_onnx_trace`), rewritten and bound to their
files (`_onnx_graph`, where rewrites hook in, and `_onnx_bind`); the weights are streamed into those files as
into any other container.  This module itself is light: torch and onnx are imported when a sink is opened.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.core import views as rewrites
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.words import not_installed
from gpt54_convert.errors import InternalError, OutputError, UnsupportedError
from gpt54_convert.exporters import _genai_config, _hf_folder, _onnx_layout, _onnx_store
from gpt54_convert.exporters._onnx_layout import IN_PLACE, IN_PLACE_LONGEST
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.formats.safetensors import Writer
from gpt54_convert.packing import onnx as packing
from gpt54_convert.quantize.grids import FLOAT, INT, Grid, grid
from gpt54_convert.quantize.qtensor import QTensor

NAME = "onnx"
DESCRIPTION = "ONNX graphs for ONNX Runtime, in optimum's layout; integer grids as MatMulNBits"
FIXED_RANGES = True  # its graphs can round activations by scales that were measured before
LIBRARIES = ("torch", "transformers", "accelerate", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
PLAIN = (
    "onnx: the graph with joined operators was given up ({}); the plain graph was written instead, which "
    "gives the same logits but decodes slower; please report it"
)
NOT_IN_PLACE = (
    "onnx: {} was given up ({}); onnxruntime-genai runs model.onnx in its place, which gives the same logits "
    "but decodes slower; please report it"
)
INSTALL = "pip install 'gpt54-convert[onnx]'"


def can_hold(target: Grid) -> bool:
    """True for float32 and float16, and for integer grids of 2, 4 or 8 bits."""
    target = _hf_folder.stored_grid(target.name)
    if target.kind == FLOAT:
        return target.name != "bfloat16"
    return target.kind == INT and target.bits in packing.BITS


def refuses(role: str, tensor: LazyTensor, grid: Grid, checkpoint: Checkpoint | None = None) -> str | None:
    """Why a weight of that role cannot stand on `grid` in a graph; None where it can."""
    if grid.kind == FLOAT:
        return None
    if not can_hold(grid):
        return "ONNX Runtime computes with integer grids of 2, 4 and 8 bits alone"
    if len(tensor.shape) != 2:
        return "only matrices can be quantized"
    if role in ("embed.position", "embed.type") or role.endswith("rel_bias"):
        return "small tables are read as floats"
    try:
        packing.block_size(_hf_folder.stored_grid(grid.name), tensor.columns)
    except UnsupportedError as error:
        return str(error)
    return None


def float_grid(role: str, tensor: LazyTensor, grid: Grid) -> Grid:
    """bfloat16 becomes float32, exactly: few runtimes compute with it."""
    return _FLOAT32 if grid.name == "bfloat16" else grid


_FLOAT32 = grid("float32")


def leaves_out(checkpoint: Checkpoint) -> list[str]:
    """Tensors that no graph reads (BERT's pooler and heads).

    Raises UnsupportedError where the libraries are missing or the architecture is not described.
    """
    _check(checkpoint)
    from gpt54_convert.exporters import _onnx_trace

    used = _onnx_trace.used_tensors(checkpoint)
    return [name for name in checkpoint.tensors if name not in used]


def _check(checkpoint: Checkpoint) -> None:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"ONNX is written with libraries, and {not_installed(missing)}: {INSTALL}")
    if not checkpoint.config:
        raise UnsupportedError(
            "ONNX needs config.json, and a lone file has none; name the folder that holds both"
        )
    if checkpoint.architecture is None:
        model_type = checkpoint.config.get("model_type")
        raise UnsupportedError(
            f"model_type {model_type!r} is not described, so how to call it is unknown (described: "
            f"{', '.join(archs.names())}); to add it, write one table gpt54_convert/archs/{model_type}.py as "
            "docs/architectures.md shows"
        )


def open_sink(checkpoint: Checkpoint, folder: Path, options: SinkOptions) -> OnnxSink:
    """Trace the graphs and lay the files out; nothing is written before the first `put`.

    Raises UnsupportedError where the libraries are missing, and for a model that cannot be traced.
    """
    _check(checkpoint)
    return OnnxSink(checkpoint, folder, options)


class OnnxSink:
    """One folder of graphs being written; see `exporters._sink.Sink`."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, options: SinkOptions, problem: str = "") -> None:
        """problem: what is known to be wrong with joined operators in this model, if anything is."""
        self._checkpoint, self.folder, self.options = checkpoint, folder, options
        unused = set(leaves_out(checkpoint))
        self._views = {name: _as_stored(t) for name, t in checkpoint.tensors.items() if name not in unused}
        stored = list(self._views.values())
        self.dtype = compute_dtype(stored)
        self._layout = _onnx_layout.layout(options.layout, stored, self.dtype)
        self.place = folder / self._layout.folder  # of graphs and weights
        homes = _onnx_layout.homes(checkpoint, self._views, self._layout)
        self._written = _onnx_layout.copies(self._views, homes)
        neighbours = _onnx_layout.neighbours(checkpoint, self._views)
        written = list(self._written.values())
        self.store = _onnx_store.lay_out(written, homes, options.shard_bytes, neighbours)
        self.notes: list[str] = []
        plain = [replace(view, grid=None, read_codes=None) for view in stored]
        self._side = _hf_folder.side_files(checkpoint, plain)
        self.draw(problem)
        self._writers: dict[str, Writer] = {}
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """See `Sink`; it changes where `close` has to lay out other graphs."""
        small = sum(map(len, (*self.graphs.values(), *self._side.values())))
        return self.store.size_bytes + small

    def draw(self, problem: str) -> None:
        """Lay the graphs out, with joined operators unless a `problem` with these is known."""
        from gpt54_convert.exporters import _onnx_graph

        graphs = _onnx_graph.files(
            self._checkpoint,
            self._views,
            self.store,
            self.dtype,
            self._layout,
            self.options,
            plain=bool(problem),
        )
        self.graphs, self.problem = graphs.contents, problem or graphs.problem
        if self.problem:
            self.notes.append(PLAIN.format(self.problem))
        self._side |= self._extra(self._checkpoint)
        if graphs.in_place_problem:
            self.drop_in_place(graphs.in_place_problem)

    def drop_in_place(self, problem: str) -> None:
        """Do without the decoder's second graph, and say why."""
        self.graphs.pop(IN_PLACE, None)
        self.notes.append(NOT_IN_PLACE.format(IN_PLACE, problem))
        self._side |= self._extra(self._checkpoint)

    def _extra(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """What the runtime that the layout is for wants to be told besides."""
        if self._layout.folder:
            counts = _onnx_layout.config_entry(self.graphs, self.store.layouts)
            config = json.loads(self._side["config.json"])
            config["transformers.js_config"] = {"use_external_data_format": counts}
            return {"config.json": _hf_folder.to_json(config)}
        second = (IN_PLACE, IN_PLACE_LONGEST) if IN_PLACE in self.graphs else None
        genai = _genai_config.content(checkpoint, second)
        return {} if genai is None else {_genai_config.FILE: _hf_folder.to_json(genai)}

    def views(self) -> list[LazyTensor]:
        """Every tensor that a graph reads, under its canonical name, in the order of the files."""
        return [self._written[name] for name in self.store.parts]

    def put(self, name: str, start: int, stop: int, rows: QTensor | NDArray[Any]) -> None:
        """Write rows [start, stop) of view `name`: codes where it has a grid, else its storage type."""
        parts = self.store.parts[name]
        if isinstance(rows, QTensor):
            if _onnx_store.VALUES in parts:
                raise InternalError(f"tensor {name} was laid out as floats, but codes arrived")
            content = packing.pack(replace(rows, grid=_hf_folder.stored_grid(rows.grid.name)))
        else:
            content = {_onnx_store.VALUES: rows}
        for kind, part in parts.items():
            self._writer(part.file).put(f"{name}/{kind}", start, content[kind])

    def close(self) -> list[Path]:
        """Finish all files and check the graphs; returns the weights' files first, largest first.

        Where the graphs with joined operators fail, the plain ones take their place, over the same weights.
        Raises OutputError where those do not give torch's logits either: nothing may be published then.
        """
        from gpt54_convert.exporters import _onnx_trial

        self.finish()
        _onnx_trial.hold(self)
        weights = sorted(self.store.layouts, key=lambda file: (-self.store.layouts[file].size_bytes, file))
        return [
            *(self.place / name for name in (*weights, *self.graphs)),
            *(self.folder / name for name in self._side),
        ]

    def finish(self) -> None:
        """Close the files of weights, and write all else."""
        for file in self.store.layouts:
            self._writer(file)
        for writer in self._writers.values():
            writer.close()
        self.write_graphs()

    def write_graphs(self) -> None:
        """Write the graphs and what names them, in the place of what is there."""
        for path in self.place.glob("*.onnx"):
            path.unlink()
        for name, content in self.graphs.items():
            _write_file(self.place / name, content)
        for name, content in self._side.items():
            _write_file(self.folder / name, content)

    def read_back(self) -> Checkpoint:
        """What was written, its tensors read from the files."""
        from gpt54_convert.exporters import _onnx_read

        stored = self._checkpoint.with_tensors(self._written)
        return _onnx_read.read_back(self.place, stored, self.store.parts)

    def _writer(self, file: str) -> Writer:
        with self._lock:
            if file not in self._writers:
                self.place.mkdir(exist_ok=True)
                self._writers[file] = Writer(self.place / file, self.store.layouts[file])
            return self._writers[file]


def compute_dtype(views: Sequence[LazyTensor]) -> str:
    """The type that the graphs compute in: float16 where most of a float model is that, else float32."""
    counts: Counter[str] = Counter()
    for view in views:
        counts[view.dtype] += view.size
    quantized = any(view.grid for view in views)
    return "float16" if not quantized and counts["float16"] > counts["float32"] else "float32"


def _as_stored(tensor: LazyTensor) -> LazyTensor:
    """The tensor as the file holds it.  Raises UnsupportedError for an unfit grid."""
    if tensor.grid is None:
        return tensor if tensor.dtype == "float16" else rewrites.cast(tensor, "float32")
    target = _hf_folder.stored_grid(tensor.grid)
    problem = refuses("", tensor, target)
    if problem is not None:
        raise UnsupportedError(f"tensor {tensor.name} cannot be stored as {target.name}: {problem}")
    return tensor


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
