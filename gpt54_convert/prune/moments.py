"""Second moments of what flows into each matrix, measured on text; one at a time is in memory."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.forward.torch_model import TorchReference
from gpt54_convert.prune.evidence import described
from gpt54_convert.prune.observe import Hook, batches, hooked
from gpt54_convert.prune.options import Calibration


def second_moments(
    checkpoint: Checkpoint, names: list[str], context: Context, calibration: Calibration
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The matrices that read the same inputs, and the sum of x xᵀ over all tokens [in, in]."""
    groups = _sharing(checkpoint, names)
    files = {group: context.workspace / f"moments-{_short(group)}" for group in groups}
    for path in files.values():
        path.unlink(missing_ok=True)
    hooks = {members[0]: _adding(files[group]) for group, members in groups.items()}
    with TorchReference(checkpoint, context.threads) as reference, hooked(reference, hooks):
        for batch in batches(checkpoint, context, calibration):
            reference.forward(batch)
    for group, members in groups.items():
        width = checkpoint.tensors[members[0]].columns
        yield members, np.fromfile(files[group], np.float32).reshape(width, width)
        files[group].unlink()


def _adding(path: Path) -> Hook:
    """Add a batch's moments to those in a file: for wide models all of them would not fit into memory."""

    def hook(entering: torch.Tensor) -> None:
        rows = entering.float().reshape(-1, entering.shape[-1])
        moments: NDArray[Any] = (rows.T @ rows).numpy()
        if path.exists():
            moments += np.fromfile(path, np.float32).reshape(moments.shape)
        moments.tofile(path)

    return hook


def _sharing(checkpoint: Checkpoint, names: list[str]) -> dict[str, list[str]]:
    """Matrices by what they read: query, key and value read alike, gate and up too."""
    matches = described(checkpoint)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem, _, part = matches[name].weight.role.rpartition(".")
        alone = part in ("out", "down") or (stem.endswith("cross") and part == "q")
        groups[f"{stem}/{matches[name].layer}/{part if alone else ''}"].append(name)
    return groups


def _short(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:24]
