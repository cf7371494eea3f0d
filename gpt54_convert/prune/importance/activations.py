"""From activations on text: what really flows through each head and channel, times the weights behind it.

Close to the structured scores of Minitron (Muralidharan et al. 2024, arXiv:2407.14679), weighed by the
weights that read each channel as in Wanda (Sun et al. 2023, arXiv:2306.11695).
"""

from __future__ import annotations

from collections.abc import Iterable

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.prune.energies import profiles
from gpt54_convert.prune.evidence import Evidence, described, needed
from gpt54_convert.prune.needs import measured
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.spaces import WIDTH, Space

DESCRIPTION = "activations on text, times the weights that read them (runs the model in torch)"


def evidence(
    checkpoint: Checkpoint, spaces: Iterable[Space], context: Context, calibration: Calibration
) -> Evidence:
    """Energies measured on text.  Raises MeasureError where there is no tokenizer, torch or enough text."""
    assert checkpoint.architecture is not None
    sums, matches = measured("flows", checkpoint, context, calibration), described(checkpoint)
    norms = {name for name, match in matches.items() if match.weight.shape == (WIDTH,)}
    inputs = {name: energy for name, energy in sums.items() if name not in norms}
    residual = {name: energy for name, energy in sums.items() if name in norms}
    names = needed(archs.by_name(checkpoint.architecture), matches, spaces)
    found = profiles(checkpoint.tensors, [name for name in names if name in inputs], context.report)
    return Evidence(inputs, residual, {name: each.sums[1] for name, each in found.items()})
