"""The student that a map makes of a teacher: lazy tensors, each row made when it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.picks import scaled
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.distill import combine
from gpt54_convert.distill.mapping import Map, dumps
from gpt54_convert.distill.origin import Both, Origin, origins, reads
from gpt54_convert.distill.squares import Squares

NOTES = "gpt54_convert"  # our entry in config.json; other readers skip it


def student(teacher: Checkpoint, plan: Map) -> Checkpoint:
    """The student as a checkpoint, in the teacher's float types; nothing is read yet.

    A map of a teacher onto itself gives the teacher's own tensors.
    Raises InputError for a map that does not fit the teacher, UnsupportedError for what is not described.
    """
    both = Both(teacher, plan)
    squares = Squares(both)
    tensors = {name: _tensor(both, squares, name, each) for name, each in origins(teacher, plan).items()}
    return replace(
        teacher,
        tensors=tensors,
        config=_config(teacher, plan),
        architecture=both.new.name,
    )


def _config(teacher: Checkpoint, plan: Map) -> Mapping[str, Any]:
    if not (plan.layers or plan.axes or plan.scale or plan.tensors):
        return plan.student  # the teacher itself
    note = {
        "teacher": name_of(teacher),
        "map_sha256": hashlib.sha256(dumps(replace(plan, teacher=None)).encode()).hexdigest(),
    }
    return {**plan.student, NOTES: {**plan.student.get(NOTES, {}), "mapped": note}}


def name_of(checkpoint: Checkpoint) -> str:
    """A model's name for people: the hub's, else that of its folder or file."""
    own = checkpoint.config.get("_name_or_path")
    if isinstance(own, str) and own.strip("./") and not own.startswith(("/", ".")):
        return own
    path = checkpoint.source.path.absolute()
    # artifacts lie in a folder named after their container
    return path.parent.name if path.name in ("safetensors", "gguf", "onnx") else path.name


def _tensor(both: Both, squares: Squares, name: str, origin: Origin) -> LazyTensor:
    view = combine.mean(
        [_cut(both, squares, both.teacher.tensors[source], origin) for source in origin.names]
    )
    if origin.plus:
        other, row = origin.plus
        addend = both.teacher.tensors[other]
        columns = origin.choices[1] if len(origin.choices) > 1 else None
        if columns is not None:
            addend = combine.gathered(addend, 1, columns, False)
        view = combine.plus_row(view, addend, row)
    return scaled(view, origin.scale, origin.shift).renamed(name)


def _cut(both: Both, squares: Squares, tensor: LazyTensor, origin: Origin) -> LazyTensor:
    match = both.old.match(tensor.name)
    for axis, choice in enumerate(origin.choices):
        if choice is None or axis >= len(tensor.shape):
            continue
        if axis == 1 and origin.squares:
            made = squares.matrix(tensor.name, origin.squares, choice)
            tensor = combine.projected(tensor, made, len(choice))
        else:
            adds = axis == 1 and match is not None and reads(match)
            tensor = combine.gathered(tensor, axis, choice, adds)
    return tensor
