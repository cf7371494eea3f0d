"""Statistics of a whole model's matrices, collected once and kept in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt54_convert.calibrate import imatrix_file
from gpt54_convert.calibrate import text as texts
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import OutputError, UnsupportedError
from gpt54_convert.quantize.statistics import Floats, Statistics

if TYPE_CHECKING:  # torch
    from gpt54_convert.calibrate.walk import Seen


def collect(
    checkpoint: Checkpoint, options: Calibration, report: Report, threads: int = 0
) -> dict[str, Statistics]:
    """Mean squares and greatest values of what enters every matrix of the float model, by tensor name.

    Raises UnsupportedError without torch, InputError and MeasureError for text that cannot be used.
    """
    try:
        from gpt54_convert.calibrate.walk import Walk
    except ImportError as error:
        raise UnsupportedError(
            f"calibrating runs the model on text, and {error.name} is not installed; "
            "pip install 'gpt54-convert[torch]'"
        ) from error
    batches = texts.batches(texts.documents(texts.read(options), checkpoint, options))
    visitor = _Looker()
    with tempfile.TemporaryDirectory(prefix="gpt54-calibrate-") as folder:
        Walk(checkpoint, batches, Path(folder), report, threads, hold=False).run(visitor)
    return visitor.found


def calibrate(
    checkpoint: Checkpoint, options: Calibration, goal: Path, report: Report, threads: int = 0
) -> dict[str, Any]:
    """Collect and write `goal`; answers what was collected, for people and programs.

    Raises OutputError where `goal` cannot be written, or is one of the model's own files.
    """
    if any(path.resolve() == goal.resolve() for path in checkpoint.source.files):
        raise OutputError(f"{goal} is the model being read; name another file with -o")
    found = collect(checkpoint, options, report, threads)
    digest = texts.digest(texts.read(options))
    dataset = f"{options.calibration.name if options.calibration else 'gpt54-convert'} sha256:{digest}"
    imatrix_file.write(goal, checkpoint, found, dataset, options.calibration_length)
    return {
        "path": str(goal),
        "matrices": len(found),
        "tokens": max((statistics.tokens for statistics in found.values()), default=0),
        "text_sha256": digest,
    }


class _Looker:
    """Visits layers, keeps their statistics and changes nothing."""

    moments, only_looks = False, True

    def __init__(self) -> None:
        self.found: dict[str, Statistics] = {}

    def known(self, names: Sequence[str]) -> Mapping[str, Floats] | None:
        return None

    def solve(self, weights: Mapping[str, Floats], seen: Mapping[str, Seen]) -> None:
        self.found |= {name: met.fit for name, met in seen.items()}
