"""Rotation: hidden states and values turn into a basis in which no channel stands out, before rounding.

Sources: Ashkboos et al., "QuaRot" (NeurIPS 2024); Liu et al., "SpinQuant" (ICLR 2025).  Only what folds into
the weights is done: the residual stream x becomes x Q (embeddings and whatever writes to it are rotated,
whatever reads it back, norms' weights folded first), and every value v becomes v R within its head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.options import option
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.forward.batch import Document
from gpt54_convert.quantize.assign import has_head
from gpt54_convert.transforms._folds import check_described, norm_folds, rewritten, value_folds
from gpt54_convert.transforms._rotation import Floats, Rotation, finite_rows, rotation
from gpt54_convert.transforms._same import check

DESCRIPTION = "hidden states and values are rotated, so that outliers spread (QuaRot, SpinQuant)"
_WIDTH = "width"
_TOKENS = 24  # on which the function is seen to be kept

Tensors = dict[str, LazyTensor]


@dataclass(frozen=True)
class Rotate:
    """Spread outliers over all channels by rotations; the model computes the same as before."""

    residual: bool = option(
        True, "Rotate hidden states too, not only values (gives a tied head weights of its own)."
    )
    seed: int = option(0, "Draws the rotations' signs.", metavar="N")

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The rotated model, float32 where it changed; where hidden states cannot be rotated, values alone.

        Raises UnsupportedError for an undescribed architecture, InputError where weights are not finite.
        """
        rotated = self._rotated(checkpoint, context.report)
        try:
            from gpt54_convert.forward import torch_model  # noqa: F401 - only the look at it runs the model
        except ImportError as error:
            context.report.note(f"rotated, but not run to see that answers stay the same ({error})")
        else:
            check("rotate", checkpoint, rotated, [_document(checkpoint)], context.threads)
        return rotated

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The types of the rotated model, with nothing read."""
        return self._rotated(checkpoint, Report())

    def _rotated(self, checkpoint: Checkpoint, report: Report) -> Checkpoint:
        check_described(checkpoint)
        problem = obstacle(checkpoint) if self.residual else ""
        if problem:
            report.note(f"rotate: values are rotated within their heads, hidden states are not: {problem}")
        rotated = _values(checkpoint, self.seed)
        if problem or not self.residual:
            return rotated
        if not has_head(rotated):
            rotated = untied(rotated)
            more = rotated.parameter_count - checkpoint.parameter_count
            report.note(
                f"rotate: the head, so far the embedding itself, now has {more:,} weights of its own: the "
                "last norm folds into one of them only (in a recipe, residual = false avoids it)"
            )
        return _residual(rotated, self.seed + 1)


def obstacle(checkpoint: Checkpoint) -> str:
    """Why hidden states cannot be rotated without changing the function; empty where they can."""
    table = archs.by_name(str(checkpoint.architecture))
    sizes = table.sizes(checkpoint.config)
    with_head = checkpoint if has_head(checkpoint) or table.kind == "encoder" else untied(checkpoint)
    folds = list(norm_folds(with_head))
    norms = {name for fold in folds for name in fold.sources}
    read = {name for fold in folds for name in fold.targets}
    for name, tensor in checkpoint.tensors.items():
        match = table.match(name)
        if match is None:
            if sizes[_WIDTH] in tensor.shape:
                return f"the table of {table.name} does not say what {name} does to them"
        elif match.weight.shape == (_WIDTH,):
            if match.weight.bias != "no":
                return f"{name} belongs to a norm that subtracts the mean, which this rotation does not keep"
            if name not in norms:
                return f"{name} scales their channels behind the last matrix"
        elif _reads(match) and name not in read:
            return f"{name} reads them without a norm"
    return ""


def _reads(match: Match) -> bool:
    """Whether a matrix takes the residual stream (a table of embeddings writes to it)."""
    shape = match.weight.shape
    return shape[-1] == _WIDTH and not match.is_bias and not match.weight.role.startswith("embed")


def untied(checkpoint: Checkpoint) -> Checkpoint:
    """The same function with a head of its own, with the factor that a T5 puts before a tied one."""
    table = archs.by_name(str(checkpoint.architecture))
    names = {weight.role: weight.hf + weight.hf_suffix for weight in table.weights}
    embedding, width = checkpoint.tensors[names["embed"]], table.sizes(checkpoint.config)[_WIDTH]
    factor = np.float32(width ** table.width_scales(checkpoint.config).get("norm.final", 0.0))
    head = embedding.renamed(names["head"])
    if factor != 1:
        head = rewritten(head, lambda start, stop: embedding.float_rows(start, stop) * factor)
    config = {**checkpoint.config, "tie_word_embeddings": False}
    return replace(checkpoint, tensors={**checkpoint.tensors, head.name: head}, config=config)


def _values(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """Every value rotated within its head, every output back.

    Biases too: the weights that attention gives to values sum to 1.
    """
    sizes = archs.by_name(str(checkpoint.architecture)).sizes(checkpoint.config)
    turn, tensors = rotation(sizes["head_dim"], seed), dict(checkpoint.tensors)
    for fold in value_folds(checkpoint):
        for name in fold.sources:
            tensors[name] = turn.row_groups(tensors[name], fold.first_row)
        for name in fold.targets:
            tensors[name] = turn.columns(tensors[name])
    return checkpoint.with_tensors(tensors)


def _residual(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    table = archs.by_name(str(checkpoint.architecture))
    turn = rotation(table.sizes(checkpoint.config)[_WIDTH], seed)
    tensors = _norms_folded(checkpoint)
    for name, tensor in tensors.items():
        tensors[name] = _turned(tensor, table, turn)
    return checkpoint.with_tensors(tensors)


def _norms_folded(checkpoint: Checkpoint) -> Tensors:
    """Weights of norms multiplied into the columns of what reads them, and 1 in their own place."""
    tensors = dict(checkpoint.tensors)
    for fold in norm_folds(checkpoint):
        (norm,) = fold.sources
        for name in fold.targets:
            tensors[name] = _scaled(tensors[name], checkpoint.tensors[norm], 1.0 * fold.plus_one)
        tensors[norm] = _constant(checkpoint.tensors[norm], 1.0 - fold.plus_one)
    return tensors


def _scaled(tensor: LazyTensor, norm: LazyTensor, more: float) -> LazyTensor:
    """Columns times the norm's weights, which are small and read anew each time."""

    def read(start: int, stop: int) -> Floats:
        factor = finite_rows(norm, 0, norm.row_count).reshape(-1) + np.float32(more)
        return tensor.float_rows(start, stop) * factor

    return rewritten(tensor, read)


def _constant(tensor: LazyTensor, value: float) -> LazyTensor:
    return rewritten(tensor, lambda start, stop: np.full((stop - start,), value, np.float32))


def _turned(tensor: LazyTensor, table: Architecture, turn: Rotation) -> LazyTensor:
    match = table.match(tensor.name)
    if match is None or match.weight.shape == (_WIDTH,):
        return tensor
    if match.weight.shape[-1] == _WIDTH and not match.is_bias:
        return turn.columns(tensor)
    return turn.rows(tensor) if match.weight.shape[0] == _WIDTH else tensor


def _document(checkpoint: Checkpoint) -> Document:
    """Tokens at random: what the model says of them does not matter, only that it says the same."""
    table = archs.by_name(str(checkpoint.architecture))
    vocab = table.sizes(checkpoint.config)["vocab"]
    tokens = np.random.default_rng(0).integers(0, vocab, (2, _TOKENS))
    prefix = tokens[1] if table.kind == "encoder-decoder" else None
    return Document(tokens[0], np.empty(0, np.int64), prefix)
