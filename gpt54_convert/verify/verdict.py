"""What verifying came to: checks with their outcome, figures, and one verdict over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt54_convert import __version__

PASS, FAIL, UNKNOWN = "pass", "fail", "could-not-measure"
SKIPPED = "skipped"  # what the quick level leaves to a real `verify`; never says that anything passed
SCHEMA = "gpt54-convert/verify/1"
EXIT_CODES = {PASS: 0, FAIL: 3, UNKNOWN: 4}


@dataclass(frozen=True)
class Check:
    """One thing that was asked.

    kind: `files`, `config`, `tokenizer`, `tensors`, `outputs`.  name: what was looked at.
    detail: one sentence; of a failure, what is wrong and where.
    value, limit: the figure that was judged and its gate, where there is one.
    """

    kind: str
    name: str
    outcome: str
    detail: str
    value: float | None = None
    limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Verdict:
    """The result of `verify`.

    about: what was compared: paths, container, runtimes, sizes, the protocol of the text.
    figures: every metric with its interval.  split: the figures of each stage where error can arise.
    plots: series that the page draws.  tensors: the weights that were compared, worst first.
    """

    about: Mapping[str, Any]
    checks: Sequence[Check]
    figures: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    tensors: Sequence[Mapping[str, Any]] = ()
    plots: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """Fail if anything failed; else unmeasured if anything, or everything, was not measured."""
        outcomes = {check.outcome for check in self.checks} - {SKIPPED}
        if FAIL in outcomes:
            return FAIL
        return UNKNOWN if UNKNOWN in outcomes or not outcomes else PASS

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.outcome not in (PASS, SKIPPED)]

    def moved(self, old: str, new: str) -> Verdict:
        """The same verdict over files that have moved from the folder `old` to `new`."""
        checks = [replace(check, detail=check.detail.replace(old, new)) for check in self.checks]
        about = {key: v.replace(old, new) if isinstance(v, str) else v for key, v in self.about.items()}
        return replace(self, about=about, checks=checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "schema": SCHEMA,
            "tool": {"name": "gpt54-convert", "version": __version__},
            "verdict": self.outcome,
            "exit_code": self.exit_code,
            **self.about,
            "checks": [check.to_dict() for check in self.checks],
            **{name: figure["value"] for name, figure in self.figures.items()},
            "intervals_95": {name: [f["low"], f["high"]] for name, f in self.figures.items()},
            "split": self.split,
            "tensors": list(self.tensors),
            "plots": self.plots,
        }
