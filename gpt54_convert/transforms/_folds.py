"""Where a factor can move between two weights of a model without changing what it computes.

A channel may be divided by s where a norm, or a linear layer whose output meets nothing but products, makes
it, and multiplied by s again in the columns of every matrix that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.archs import Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.quantize.assign import has_head

Floats = NDArray[np.float32]

# A role, and those that read its channels in the same layer.  Linear layers stand first: scaling their rows
# changes the columns that a norm's factors are chosen by.
_VALUES = (("attn.v", "attn.out"), ("attn.qkv", "attn.out"), ("cross.v", "cross.out"))
_LINEAR = (*_VALUES, ("ffn.up", "ffn.down"))
_NORMS = (
    ("norm.attn", "attn.q|attn.k|attn.v|attn.qkv"),
    ("norm.cross", "cross.q"),
    ("norm.ffn", "ffn.gate|ffn.up"),
)
_FUSED = 3  # query, key and value share one matrix; the value's rows are the last third


@dataclass(frozen=True)
class Fold:
    """One exchange.

    sources: a norm's weight and bias, or a linear layer's matrix and bias; their rows from `first_row` on,
        one a channel, are divided.
    targets: matrices whose columns are multiplied; column c belongs to channel `channel[c]`.
    channels: how many there are.  plus_one: the source stores its weight less one.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    channel: NDArray[np.intp]
    channels: int
    first_row: int = 0
    plus_one: bool = False

    def per_channel(self, per_column: Floats) -> Floats:
        """The greatest entry of each channel's columns, [columns] -> [channels]; entries are at least 0."""
        found = np.zeros(self.channels, np.float32)
        np.maximum.at(found, self.channel, per_column)
        return found

    def apply(self, checkpoint: Checkpoint, factor: Floats) -> Checkpoint:
        """The checkpoint with channels divided by `factor` [channels] and multiplied back, read lazily."""
        tensors = dict(checkpoint.tensors)
        for name in self.sources:
            tensors[name] = self._divided(tensors[name], factor, self.plus_one)
        for name in self.targets:
            tensors[name] = _columns_scaled(tensors[name], factor[self.channel])
        return checkpoint.with_tensors(tensors)

    def _divided(self, tensor: LazyTensor, factor: Floats, plus_one: bool) -> LazyTensor:
        rows = np.ones(tensor.row_count, np.float32)
        rows[self.first_row :] = 1 / factor
        one = np.float32(1 if plus_one else 0)

        def read(start: int, stop: int) -> Floats:
            values = tensor.float_rows(start, stop)
            return ((values + one) * rows[start:stop, None] - one).reshape(stop - start, *tensor.shape[1:])

        return rewritten(tensor, read)


def _columns_scaled(tensor: LazyTensor, factor: Floats) -> LazyTensor:
    return rewritten(tensor, lambda start, stop: tensor.float_rows(start, stop) * factor)


def rewritten(tensor: LazyTensor, read: object) -> LazyTensor:
    """The tensor with other rows, float32."""
    return replace(tensor, dtype="float32", grid=None, read=read, read_codes=None)  # type: ignore[arg-type]


def folds(checkpoint: Checkpoint) -> list[Fold]:
    """Every exchange that this model allows, in the order in which they should be made.

    Raises UnsupportedError for an architecture that nobody described.
    """
    check_described(checkpoint)
    return list(_linear(checkpoint, _LINEAR)) + list(norm_folds(checkpoint))


def check_described(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for an architecture that nobody described."""
    if checkpoint.architecture is None:
        raise UnsupportedError(
            "weights can only be scaled or rotated in a described architecture, and this model_type is none "
            f"(described: {', '.join(archs.names())})"
        )


Roles = dict[tuple[str, int | None], list[tuple[str, Match]]]


def _roles(checkpoint: Checkpoint) -> Roles:
    """(role, layer) -> the tensors there; a bias stands behind its weight."""
    architecture = archs.by_name(str(checkpoint.architecture))
    found: Roles = {}
    for name in sorted(checkpoint.tensors, key=lambda name: name.endswith(".bias")):
        match = architecture.match(name)
        if match is not None:
            found.setdefault((match.weight.role, match.layer), []).append((name, match))
    return found


def value_folds(checkpoint: Checkpoint) -> Iterator[Fold]:
    """From every value to its output."""
    return _linear(checkpoint, _VALUES)


def _linear(checkpoint: Checkpoint, pairs: tuple[tuple[str, str], ...]) -> Iterator[Fold]:
    """Value to output, per head; up to down, where the activation sits on the gate or is homogeneous."""
    roles = _roles(checkpoint)
    sizes = archs.by_name(str(checkpoint.architecture)).sizes(checkpoint.config)
    for prefix in ("enc.", ""):
        for maker, reader in pairs:
            for (role, layer), sources in roles.items():
                targets = roles.get((prefix + reader, layer), [])
                if role != prefix + maker or not targets:
                    continue
                if maker == "ffn.up":
                    gated = (f"{prefix}ffn.gate", layer) in roles
                    if gated or checkpoint.config.get("feed_forward_proj") == "relu":
                        yield _fold(checkpoint, sources, targets)
                else:
                    yield _value_fold(checkpoint, sources, targets, sizes)


def _value_fold(
    checkpoint: Checkpoint,
    sources: list[tuple[str, Match]],
    targets: list[tuple[str, Match]],
    sizes: Mapping[str, int],
) -> Fold:
    """A value's head serves several of the output's: their columns share its channels."""
    heads, size = sizes["heads"], sizes["head_dim"]
    kv_heads = sizes.get("kv_heads", heads)
    owner = np.arange(heads) // (heads // kv_heads)
    channel = (owner[:, None] * size + np.arange(size)).reshape(-1)
    rows = checkpoint.tensors[sources[0][0]].row_count
    fused = sources[0][1].weight.role.endswith("qkv")
    fold = _fold(checkpoint, sources, targets)
    first_row = rows - rows // _FUSED if fused else 0
    return replace(fold, channel=channel, channels=kv_heads * size, first_row=first_row)


def norm_folds(checkpoint: Checkpoint) -> Iterator[Fold]:
    """A norm in front of linear layers; the encoder's last one serves every cross-attention."""
    roles = _roles(checkpoint)
    for (role, layer), sources in roles.items():
        prefix = "enc." if role.startswith("enc.") else ""
        readers = dict(_NORMS).get(role.removeprefix(prefix), "").split("|")
        targets = [pair for reader in readers for pair in roles.get((prefix + reader, layer), [])]
        if role == "enc.norm.final":
            targets = [p for (r, _), pairs in roles.items() if r in ("cross.k", "cross.v") for p in pairs]
        if role == "norm.final" and has_head(checkpoint):
            targets = roles[("head", None)]
        if targets:
            yield _fold(checkpoint, sources, targets)


def _fold(checkpoint: Checkpoint, sources: list[tuple[str, Match]], targets: list[tuple[str, Match]]) -> Fold:
    matrices = tuple(name for name, match in targets if not match.is_bias)
    columns = checkpoint.tensors[matrices[0]].columns
    names = tuple(name for name, _ in sources)
    plus_one = sources[0][1].weight.plus_one
    return Fold(names, matrices, np.arange(columns), columns, plus_one=plus_one)


def outline(checkpoint: Checkpoint) -> Checkpoint:
    """The types that a checkpoint has once its folds are applied, with nothing measured."""
    for fold in folds(checkpoint):
        checkpoint = fold.apply(checkpoint, np.ones(fold.channels, np.float32))
    return checkpoint
