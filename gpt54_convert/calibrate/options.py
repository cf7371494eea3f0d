"""What calibration runs on: the fields are the command line's options and a recipe's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt54_convert.core.options import option
from gpt54_convert.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The text, and how much of it."""

    calibration: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None,
        "Text to calibrate on, .txt or .jsonl. Default: the calibration text of this package.",
        metavar="FILE",
        is_path=True,
    )
    calibration_samples: int = option(64, "Documents to calibrate on.", metavar="N")
    calibration_length: int = option(256, "Tokens of each of them.", metavar="N")
    calibration_seed: int = option(0, "Draws which parts of the text are used.", metavar="N")

    def __post_init__(self) -> None:
        for name in ("samples", "length"):
            if getattr(self, f"calibration_{name}") < 1:
                raise UsageError(f"--calibration-{name} must be at least 1")
