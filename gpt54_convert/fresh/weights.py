"""Random weights, drawn a chunk of rows at a time while they are written, so that memory stays bounded.

Standard deviations are those of transformers' T5 (`T5PreTrainedModel._init_weights`, factor 1), but for the
head, which gets width ** -0.5 so that the logits of a fresh model stay near 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs, data
from gpt54_convert.archs import Match
from gpt54_convert.archs._family import TIERS, config
from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.dtypes import from_float32
from gpt54_convert.core.tensor import CHUNK_BYTES, LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.fresh.options import Init
from gpt54_convert.loaders._folder import side_files


def checkpoint(options: Init) -> Checkpoint:
    """The model, its tensors undrawn, with the tokenizer of the embedded model.

    Its vocabulary is larger than the tokenizer's, as padded ones are; config.json says that it is random.
    Raises UsageError for a scale at which a size is not whole or the tokenizer does not fit.
    """
    tier = TIERS[options.tier]
    try:
        values = config(tier, options.factor)
    except ValueError as error:
        raise UsageError(
            f"--scale {options.scale} does not suit {tier.name}: {error}; take 1/2, 1/4, 1/8 …"
        ) from None
    side = side_files(data.model_path())
    own = side.config["vocab_size"]
    if values["vocab_size"] < own:
        raise UsageError(
            f"--scale {options.scale} leaves a vocabulary of {values['vocab_size']}, less than the "
            f"tokenizer's {own}; take a larger one"
        )
    values["gpt54_convert"] = {
        "weights": "random",
        "tier": tier.name,
        "scale": str(options.factor),
        "seed": options.seed,
    }
    architecture = archs.by_name("gpt54")
    sizes = architecture.sizes(values)
    tensors = {
        name: _tensor(name, match, sizes, options) for name, match in architecture.expected(sizes).items()
    }
    return Checkpoint(
        tensors,
        values,
        Source(Path(options.name), "random"),
        architecture.name,
        side.generation_config,
        side.tokenizer,
    )


def _tensor(name: str, match: Match, sizes: Mapping[str, int], options: Init) -> LazyTensor:
    shape = match.shape(sizes)
    if len(shape) == 1:
        ones = from_float32(np.ones(shape, np.float32), options.dtype)
        return LazyTensor(name, shape, options.dtype, lambda start, stop: ones[start:stop])
    # Every range of this many rows has a generator of its own: who reads what in which order changes nothing.
    rows = max(1, CHUNK_BYTES // (4 * shape[1]))
    key = int.from_bytes(hashlib.sha256(f"{options.seed}/{name}".encode()).digest()[:16])
    deviation = np.float32(_deviation(match, shape, sizes))

    def draw(index: int) -> NDArray[Any]:
        generator = np.random.Generator(np.random.SFC64([key, index]))
        count = min(rows, shape[0] - index * rows)
        values = generator.standard_normal((count, shape[1]), np.float32) * deviation
        return from_float32(values, options.dtype)

    def read(start: int, stop: int) -> NDArray[Any]:
        first, last = start // rows, -(-stop // rows)
        parts = [draw(index) for index in range(first, last)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[start - first * rows : stop - first * rows]

    return LazyTensor(name, shape, options.dtype, read, row_align=rows)


def _deviation(match: Match, shape: tuple[int, ...], sizes: Mapping[str, int]) -> float:
    role = match.role.removeprefix("enc.")
    if role == "embed":
        return 1.0
    if role == "attn.rel_bias":
        return float(sizes["width"] ** -0.5)
    inputs = float(shape[1] ** -0.5)
    # T5 does not divide by √head_dim when it attends: the query's weights do it.
    return inputs * sizes["head_dim"] ** -0.5 if role.endswith(".q") else inputs
