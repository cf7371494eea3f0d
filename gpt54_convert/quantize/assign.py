"""From a scheme to the grid of every tensor, with the reason where it is not the scheme's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import is_float
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.grids import FLOAT, Grid, grid
from gpt54_convert.quantize.schemes import KEPT_ROLES, Place, Scheme

SMALL = 1024  # elements; below this a matrix costs nothing and its scales would cost more


@dataclass(frozen=True)
class Assignment:
    """One tensor's grid and, where it is not what the scheme asked for, why."""

    name: str
    role: str
    grid: Grid
    reason: str = ""


Refusal = Callable[[str, LazyTensor, Grid], str | None]
"""(role, tensor, grid) -> why a container cannot hold it, or None; given by the exporter."""


def parse_keep(entries: Iterable[str]) -> dict[str, Grid]:
    """`ROLE=GRID` options, ROLE a glob (`attn.v`, `ffn.*`, `head`).  Raises UsageError for another form."""
    keep = {}
    for entry in entries:
        role, separator, name = entry.partition("=")
        if not separator or not role or not name:
            raise UsageError(f"--keep {entry!r} is not ROLE=GRID, for example --keep attn.v=float16")
        keep[role] = grid(name)
    return keep


def assign(
    checkpoint: Checkpoint, scheme: Scheme, keep: Mapping[str, Grid], refuses: Refusal
) -> dict[str, Assignment]:
    """The grid of every tensor of `checkpoint` for one container.

    Raises UsageError where an entry of `keep` matches no role of this model.
    """
    places = {name: place(checkpoint, name) for name in checkpoint.tensors}
    _check_keep(keep, places.values())
    return {
        name: _assign_one(tensor, places[name], scheme, keep, refuses)
        for name, tensor in checkpoint.tensors.items()
    }


def place(checkpoint: Checkpoint, name: str) -> Place:
    """Where a tensor stands; the embedding of a model without a head of its own counts as `head`."""
    if checkpoint.architecture is None:
        return Place(_guess_role(name, checkpoint.tensors[name]), 0, 1)
    architecture = archs.by_name(checkpoint.architecture)
    match = architecture.match(name)
    if match is None:
        return Place(_guess_role(name, checkpoint.tensors[name]), 0, 1)
    sizes = architecture.sizes(checkpoint.config)
    role = match.role
    if role == "embed" and architecture.kind != "encoder" and not has_head(checkpoint):
        role = "head"
    layers = sizes[match.weight.stack] if match.layer is not None else 1
    ratio = sizes.get("heads", 1) // max(1, sizes.get("kv_heads", sizes.get("heads", 1)))
    return Place(role, match.layer or 0, layers, ratio)


def has_head(checkpoint: Checkpoint) -> bool:
    """Whether the model has a head apart from its embedding."""
    architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None
    matches = (architecture.match(name) for name in checkpoint.tensors) if architecture else ()
    return any(match is not None and match.role == "head" for match in matches)


def _guess_role(name: str, tensor: LazyTensor) -> str:
    """The role of a tensor of an undescribed architecture, from its name and shape alone."""
    words = name.lower()
    if not is_float(tensor.dtype):
        return "buffer"
    if len(tensor.shape) != 2:
        return "norm.unknown" if "norm" in words else "other.bias"
    if "lm_head" in words:
        return "head"
    if any(word in words for word in ("embed", "wte", "wpe", "shared", "rel_bias", "relative_attention")):
        return "embed.unknown"
    return "linear"


def _check_keep(keep: Mapping[str, Grid], places: Iterable[Place]) -> None:
    roles = sorted({found.role for found in places})
    for pattern in keep:
        if not any(fnmatchcase(role, pattern) for role in roles):
            raise UsageError(f"--keep {pattern}: this model has no such role; it has {', '.join(roles)}")


def _assign_one(
    tensor: LazyTensor, where: Place, scheme: Scheme, keep: Mapping[str, Grid], refuses: Refusal
) -> Assignment:
    own = _own_float(tensor)
    if not is_float(tensor.dtype):
        return Assignment(tensor.name, where.role, own, "not a weight")
    for pattern, wanted in keep.items():
        if fnmatchcase(where.role, pattern):
            return _settle(tensor, where, wanted, scheme, refuses, "--keep")
    if any(fnmatchcase(where.role, kept) for kept in KEPT_ROLES.split("|")) or len(tensor.shape) != 2:
        return Assignment(tensor.name, where.role, own)
    if tensor.size < SMALL and grid(scheme.default).kind != FLOAT:
        return Assignment(tensor.name, where.role, own, f"fewer than {SMALL} elements")
    return _settle(tensor, where, grid(scheme.grid_for(where)), scheme, refuses, "")


def _settle(
    tensor: LazyTensor, where: Place, wanted: Grid, scheme: Scheme, refuses: Refusal, reason: str
) -> Assignment:
    """`wanted`, or what takes its place where the row length or the container does not allow it."""
    current = wanted
    while current.kind != FLOAT:
        problem = refuses(where.role, tensor, current)
        if problem is None and not current.fits(tensor.columns):
            problem = f"rows of {tensor.columns} do not divide by {current.block}"
        if problem is None:
            return Assignment(tensor.name, where.role, current, reason)
        reason = f"{current.name}: {problem}"
        successor = (scheme.fallback or {}).get(current.name) if not current.fits(tensor.columns) else None
        current = grid(successor) if successor else _half(tensor)
    return Assignment(tensor.name, where.role, current, reason)


def _own_float(tensor: LazyTensor) -> Grid:
    """The source's own float type as a grid; float32 for what was dequantized or is not a weight."""
    if tensor.dtype in ("float16", "bfloat16") and tensor.grid is None:
        return grid(tensor.dtype)
    return grid("float32")


def _half(tensor: LazyTensor) -> Grid:
    """The 16-bit float that loses least: bfloat16 stays (its range may be needed), all else is float16."""
    return grid("bfloat16" if tensor.dtype == "bfloat16" and tensor.grid is None else "float16")
