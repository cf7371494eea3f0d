"""The arrays of ONNX folders by the names of the checkpoint's tensors, found by the onnx package alone.

A graph may name several arrays that stand one behind the other as one, `A+B.codes`; a Split behind their
product says how many rows each has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

TYPES = {1: np.float32, 2: np.uint8, 7: np.int64, 9: np.bool_, 10: np.float16}
Place = tuple[Path, int, tuple[int, ...], Any]


def places(folder: Path, pattern: str = "*.onnx") -> dict[str, Place]:
    """Initialiser -> its file, first byte, shape and type."""
    found: dict[str, Place] = {}
    for path in sorted(folder.glob(pattern)):
        graph = onnx.load(path, load_external_data=False).graph
        rows = joint_rows(graph)
        for entry in graph.initializer:
            if entry.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {pair.key: pair.value for pair in entry.external_data}
            place = folder / where["location"], int(where.get("offset", 0)), tuple(entry.dims)
            kind = TYPES[entry.data_type]
            found[entry.name] = (*place, kind)
            file, offset, shape = place
            base, _, part = entry.name.rpartition(".")
            base, end = (base, f".{part}") if part in ("codes", "scales", "zero_points") else (entry.name, "")
            for name, count in zip(base.split("+"), rows.get(entry.name, ()), strict=False):
                found[f"{name}{end}"] = file, offset, (count, *shape[1:]), kind
                offset += count * int(np.prod(shape[1:], dtype=int)) * np.dtype(kind).itemsize
    return found


def joint_rows(graph: Any) -> dict[str, list[int]]:
    """Joint initialiser -> the rows of each of its parts."""
    nodes = {name: node for node in graph.node for name in node.output}
    small = {each.name: each for each in graph.initializer}
    found: dict[str, list[int]] = {}
    for node in graph.node:
        if node.op_type == "Split" and nodes[node.input[0]].op_type == "MatMulNBits":
            rows = onnx.numpy_helper.to_array(small[node.input[1]]).tolist()
            for name in nodes[node.input[0]].input[1:]:
                found[nodes[name].input[0] if name in nodes else name] = rows
    return found


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in files of weights that the graph at `path` reads."""
    return {
        name: np.array(np.memmap(file, kind, "r", offset, shape))
        for name, (file, offset, shape, kind) in places(path.parent, path.name).items()
    }
