"""The weights of an ONNX folder read back from its files of external data, without running its graphs.

What counts is what the graphs say: initialisers by name (`NAME` for floats; `NAME.codes` or `NAME.rows`,
`NAME.scales`, `NAME.zero_points` for codes), where their bytes stand, and the sizes that `MatMulNBits` and
`GatherBlockQuantized` give them.  A joint initialiser (`A+B.codes`) is taken apart by the `Split` behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.exporters._hf_folder import stored_grid
from gpt54_convert.formats._file import ReadFile
from gpt54_convert.loaders import _folder, _model
from gpt54_convert.packing import onnx as packing
from gpt54_convert.quantize.grids import Grid

_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
_QUANTIZED = ("MatMulNBits", "GatherBlockQuantized")
_W8A8 = "int8-channel"
_GRAPHS_LIMIT = 512 << 20  # bytes of one graph without its weights


@dataclass(frozen=True)
class Stored:
    """One initialiser: its file, first byte, shape and dtype."""

    file: ReadFile
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(STORAGE[self.dtype]).itemsize

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), each flat."""
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        storage = STORAGE[self.dtype]
        first = self.offset + start * width * np.dtype(storage).itemsize
        return self.file.array(first, (stop - start, width), storage)


def read(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> Checkpoint | None:
    """The checkpoint in an ONNX folder; None where its graphs name their weights in another way.

    rows: the manifest's entries of tensors by name; where one says so, codes are read on its grid.
    Raises InputError for files that cannot be read.
    """
    place = folder if any(folder.glob("*.onnx")) else folder / "onnx"  # where transformers.js has them
    graphs = {path: _graph(path).graph for path in sorted(place.glob("*.onnx"))}
    rows_of = {name: parts for graph in graphs.values() for name, parts in _rows_of_joint(graph).items()}
    stored: dict[str, Stored] = {}
    grids: dict[str, str] = {}
    for path, graph in graphs.items():
        for entry in graph.initializer:
            if entry.data_location == onnx.TensorProto.EXTERNAL and entry.data_type in _TYPES:
                for name, one in _apart(entry.name, _stored(path, entry), rows_of.get(entry.name)):
                    known = stored.setdefault(name, one)
                    if known != one and known.file == one.file:
                        raise InputError(f"{path}: {name} lies elsewhere than another graph says")
        grids |= {name: found for node in _nodes(graph) for name, found in _grid_of(node)}
    grids = _whole_rows(stored) | grids
    tensors = {}
    for name, one in stored.items():
        tensor = _tensor(name, one, stored, grids, rows)
        if tensor is not None:
            tensors[tensor.name] = tensor
    if not tensors or set(rows) - set(tensors):
        return None
    side = _folder.side_files(folder)
    tensors = _as_in_a_folder(tensors, archs.for_config(side.config))
    files = (*graphs, *sorted({one.file.path for one in stored.values()}))
    return _model.build(Source(folder, "onnx", files), tensors, side)


def _as_in_a_folder(
    tensors: Mapping[str, LazyTensor], architecture: archs.Architecture | None
) -> dict[str, LazyTensor]:
    """GPT-2's matrices as [in, out], which loading undoes at no cost; graphs hold each as [out, in]."""

    def turned(name: str, tensor: LazyTensor) -> LazyTensor:
        match = architecture.match(name) if architecture else None
        is_turned = match is not None and match.is_turned and len(tensor.shape) == 2
        return views.transposed(tensor) if is_turned else tensor

    return {name: turned(name, tensor) for name, tensor in tensors.items()}


def _graph(path: Path) -> Any:
    if path.stat().st_size > _GRAPHS_LIMIT:
        raise InputError(f"{path}: is too large for a graph whose weights lie elsewhere")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise InputError(f"{path}: is no ONNX graph ({error}); make it again") from error


def _stored(graph: Path, entry: Any) -> Stored:
    place = {pair.key: pair.value for pair in entry.external_data}
    try:
        path = _folder.contained(graph.parent, place["location"])
        offset, length = int(place.get("offset", 0)), int(place["length"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{graph}: {entry.name} does not say where its data is ({error})") from error
    file, shape, dtype = ReadFile.at(path), tuple(entry.dims), _TYPES[entry.data_type]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(STORAGE[dtype]).itemsize
    if offset < 0 or size != length or offset + length > file.size_bytes:
        raise InputError(
            f"{graph}: {entry.name} should be {size:,} bytes from {offset:,} of {path.name}, which has "
            f"{file.size_bytes:,}; make or copy the artifact again"
        )
    return Stored(file, offset, shape, dtype)


def _rows_of_joint(graph: Any) -> dict[str, list[int]]:
    """The rows of each matrix in a joint initialiser, as the Split of the product says."""
    made = {output: node for node in graph.node for output in node.output}
    small = {each.name: each for each in graph.initializer if each.data_location != onnx.TensorProto.EXTERNAL}
    found: dict[str, list[int]] = {}
    for node in graph.node:
        product = made.get(node.input[0]) if node.op_type == "Split" else None
        if product is None or product.op_type != "MatMulNBits" or node.input[1] not in small:
            continue
        rows = onnx.numpy_helper.to_array(small[node.input[1]]).tolist()
        sources = [made[name].input[0] if name in made else name for name in product.input[1:]]
        found |= dict.fromkeys(sources, rows)  # a bias may be cast first
    return found


def _apart(name: str, one: Stored, rows: list[int] | None) -> list[tuple[str, Stored]]:
    """An initialiser and its name, or each of those that it joins."""
    if rows is None:
        return [(name, one)]
    base, dot, part = name.rpartition(".")
    if part not in ("codes", "scales", "zero_points"):
        base, dot, part = name, "", ""
    names = base.split(packing.AND)
    if len(names) != len(rows) or sum(rows) != one.shape[0]:
        raise InputError(f"{one.file.path.parent}: {name} is split in {len(rows)} parts of {sum(rows)} rows")
    row_bytes = one.size_bytes // one.shape[0]
    starts = [sum(rows[:place]) for place in range(len(rows))]
    return [
        (
            f"{each}{dot}{part}",
            replace(one, offset=one.offset + start * row_bytes, shape=(count, *one.shape[1:])),
        )
        for each, start, count in zip(names, starts, rows, strict=True)
    ]


def _whole_rows(stored: Mapping[str, Stored]) -> dict[str, str]:
    """The grid of codes that are turned and multiplied as integers, by no operator that names it."""
    bases = (name.removesuffix(".rows") for name in stored if name.endswith(".rows"))
    return {base: _W8A8 for base in bases if f"{base}.scales" in stored}


def _nodes(graph: Any) -> Iterator[Any]:
    """All operators, those in the branches of a merged decoder too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _grid_of(node: Any) -> list[tuple[str, str]]:
    """(weight, grid) that an operator over codes names."""
    if node.op_type not in _QUANTIZED:
        return []
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    codes = node.input[1 if node.op_type == "MatMulNBits" else 0]
    zero_points = node.input[3] if len(node.input) > 3 else ""
    name = f"int{sizes.get('bits', 4)}-g{sizes.get('block_size', 0)}{'-asym' if zero_points else ''}"
    return [(base, name) for base in codes.rpartition(".")[0].split(packing.AND)]


def _tensor(
    name: str,
    one: Stored,
    stored: Mapping[str, Stored],
    grids: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Any]],
) -> LazyTensor | None:
    """The weight that an initialiser begins: codes, or floats; None for scales and the like."""
    base, _, part = name.rpartition(".")
    if part in ("codes", "rows") and base in grids:
        try:
            target = stored_grid(rows.get(base, {}).get("grid") or grids[base])
        except UsageError:
            return None
        return _codes(base, target, one, stored)
    if one.dtype == "uint8" or (part == "scales" and base in grids):
        return None

    def read_floats(start: int, stop: int) -> NDArray[Any]:
        return one.rows(start, stop).reshape(stop - start, *one.shape[1:])

    return LazyTensor(name, one.shape, one.dtype, read_floats)


def _codes(name: str, target: Grid, codes: Stored, stored: Mapping[str, Stored]) -> LazyTensor:
    scales, zeros = stored[f"{name}.scales"], stored.get(f"{name}.zero_points")
    columns = int(np.prod(codes.shape[1:], dtype=np.int64)) * 8 // target.bits
    take: Callable[[int, int], Any] = partial(_unpack, codes, scales, zeros, target, columns)
    return LazyTensor(
        name,
        (codes.shape[0], columns),
        "float32",
        lambda start, stop: take(start, stop).dequantize(),
        grid=target.name,
        read_codes=take,
    )


def _unpack(
    codes: Stored,
    scales: Stored,
    zeros: Stored | None,
    target: Grid,
    columns: int,
    start: int,
    stop: int,
) -> Any:
    points = None if zeros is None else zeros.rows(start, stop)
    return packing.unpack(codes.rows(start, stop), scales.rows(start, stop), target, columns, points)
