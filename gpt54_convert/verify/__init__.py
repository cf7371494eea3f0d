"""Does an artifact still behave like the model it was made from?  Measured in its own runtime.

This module is light: the command line imports it for `--help`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpt54_convert.core.report import Report

if TYPE_CHECKING:
    from gpt54_convert.verify.options import VerifyOptions
    from gpt54_convert.verify.verdict import Verdict

__all__ = ["verify"]


def verify(
    artifact: Path,
    against: Path | None = None,
    options: VerifyOptions | None = None,
    report: Report | None = None,
) -> Verdict:
    """The verdict over an artifact (a file, or a folder) against the model it was made from.

    against: that model; without it, the source that the artifact's manifest records.
    Raises InputError for what cannot be read, UsageError for options that make no sense; whatever could
    not be measured is a check of the verdict, whose exit code is then 4 unless something failed.
    """
    from gpt54_convert.verify import flow
    from gpt54_convert.verify.options import VerifyOptions

    return flow.verify(artifact, against, options or VerifyOptions(), report or Report())
