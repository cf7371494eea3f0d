"""From a budget to the grids of every tensor, held to measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gpt54_convert.budget.space import LABEL, Assignments, Grids, Offer, Space, rounded_up
from gpt54_convert.budget.study import Study
from gpt54_convert.calibrate import text as texts
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError, UsageError
from gpt54_convert.quantize.assign import Refusal, parse_keep
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.recipe import Quantize, parse_size

_RIVALS = 2  # uniform schemes that are measured beside the mix
_STEPS = 6  # sizes that --max-kl tries
_NEAR = 0.93  # a loss of this share of the limit is near enough


@dataclass(frozen=True)
class Choice:
    """What was chosen for one container.

    losses: the estimated loss of every tensor that was free.  facts: targets and measurements, for manifests.
    """

    assignments: Assignments
    label: str
    losses: Mapping[str, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Candidate:
    """A mix or a uniform scheme, measured."""

    label: str
    assignments: Assignments
    size_bytes: int
    loss: float

    def to_dict(self) -> dict[str, Any]:
        return {"scheme": self.label, "size_bytes": self.size_bytes, "loss": float(f"{self.loss:.5g}")}


@dataclass
class Search:
    """The search for one model; its study is made when first needed and serves all containers."""

    step: Quantize
    threads: int
    report: Report
    _study: list[Study] = field(default_factory=list)
    _shared: dict[str, Grid] = field(default_factory=dict)

    def choose(self, offer: Offer, together: Sequence[Refusal] = ()) -> Choice:
        """The grids for one container; together: what the others refuse that are written beside it.

        One plan serves them all as far as their grids coincide and the budget allows.
        Raises UnsupportedError for a budget that this container cannot meet, naming the nearest that it can,
        UsageError for --max-kl on a model without logits, MeasureError where nothing can be measured.
        """
        space = self._space(offer, together)
        limit = self._limit(space)
        if limit is not None and limit < space.smallest_bytes:
            raise UnsupportedError(space.too_small(limit))
        study = self._studied(offer)
        study.prepare(space.free)
        if limit is None:
            choice = self._least_size(space, study, float(self.step.max_kl or 0))
        else:
            choice = self._least_loss(space, study, limit)
        if together:
            self._shared.update({name: choice.assignments[name].grid for name in space.free})
        return choice

    def _space(self, offer: Offer, together: Sequence[Refusal]) -> Space:
        """What is free: with the other containers' plan if the budget allows, else on its own."""
        keep = parse_keep(self.step.keep)
        for pinned, others in ((self._shared, together), ({}, together)):
            if not others:
                continue
            space = Space(offer, keep, others, pinned)
            limit = self._limit(space)
            if limit is None or limit >= space.smallest_bytes:
                return space
        if together:
            self.report.note(f"{offer.container}: no grids shared with the other containers meet the budget")
        return Space(offer, keep)

    def _limit(self, space: Space) -> int | None:
        """The budget in bytes; None for one of loss."""
        if self.step.target_size is not None:
            return parse_size(self.step.target_size)
        if self.step.target_bpw is not None:
            return int(self.step.target_bpw * space.offer.checkpoint.parameter_count / 8)
        return None

    def _studied(self, offer: Offer) -> Study:
        if not self._study:
            text = texts.read(self.step)
            made = Study(offer.checkpoint, self.step.solver, text, self.threads, self.report)
            self._study.append(made)
        study = self._study[0]
        if self.step.max_kl is not None and not study.judge.has_logits:
            raise UsageError(
                "--max-kl needs a model with logits, and this encoder has none; use --target-bpw"
            )
        return study

    def _least_loss(self, space: Space, study: Study, limit: int) -> Choice:
        try:
            grids = space.best_of_size(study.sensitivity.loss, limit)
            mix = [_measured(space, study, LABEL, space.assignments(grids))]
        except UnsupportedError as problem:  # a container that holds one grid at a time, for one
            mix = []
            self.report.note(f"{space.offer.container}: no mix ({problem})")
        rivals = self._rivals(space, study, limit)
        if not mix and not rivals:
            raise UnsupportedError(space.too_small(limit))
        best = min([*mix, *rivals], key=lambda found: found.loss)  # of equals the mix, which stands first
        self._tell(space, study, best, rivals)
        return self._choice(space, study, best, [*mix, *rivals])

    def _rivals(self, space: Space, study: Study, limit: int) -> list[_Candidate]:
        """The uniform schemes of at most `limit` bytes that should lose least, measured."""
        known = [
            (sum(study.sensitivity.loss(key, assignments[key].grid) for key in space.free), name, assignments)
            for name, assignments in space.uniform()
        ]
        found: list[_Candidate] = []
        for _, name, assignments in sorted(known, key=lambda entry: entry[:2]):
            try:
                if space.offer.size_bytes(assignments, name) <= limit:
                    found.append(_measured(space, study, name, assignments))
            except UnsupportedError:  # what it cannot hold together
                continue
            if len(found) == _RIVALS:
                break
        return found

    def _least_size(self, space: Space, study: Study, limit: float) -> Choice:
        wanted, best = limit, None
        tried: list[_Candidate] = []
        for _ in range(_STEPS):
            grids = space.smallest_of_loss(study.sensitivity.loss, wanted)
            found = _measured(space, study, LABEL, space.assignments(grids))
            if any(found.size_bytes == other.size_bytes for other in tried):
                break
            tried.append(found)
            if found.loss <= limit and (best is None or found.size_bytes < best.size_bytes):
                best = found
            if limit * _NEAR <= found.loss <= limit:
                break
            wanted *= 0.97 * limit / max(found.loss, limit / 100)
        if best is None:
            least = min(tried, key=lambda entry: entry.loss)
            raise UnsupportedError(
                f"{space.offer.container}: no mix keeps to --max-kl {limit:g}; the best one tried "
                f"loses {least.loss:.4g} in {least.size_bytes:,} bytes (--max-kl {rounded_up(least.loss)} "
                "can be met)"
            )
        rivals = [
            found
            for found in self._rivals(space, study, best.size_bytes)
            if found.loss <= limit and found.size_bytes < best.size_bytes
        ]
        best = min([best, *rivals], key=lambda entry: entry.size_bytes)
        self._tell(space, study, best, rivals)
        return self._choice(space, study, best, [*tried, *rivals])

    def _tell(self, space: Space, study: Study, best: _Candidate, rivals: list[_Candidate]) -> None:
        """Say what was measured, in one sentence."""
        words = f"{space.offer.container}: {best.label} of {best.size_bytes:,} bytes loses {best.loss:.4g}"
        words += f" ({study.judge.unit}, {study.judge.token_count:,} calibration tokens held back)"
        others = [found for found in rivals if found.label != best.label]
        if others:
            words += "; uniform " + ", ".join(f"{o.label} ({o.size_bytes:,}) {o.loss:.4g}" for o in others)
        if best.label != LABEL:
            words += "; no mix did better, so the uniform scheme is written"
        self.report.note(words)

    def _choice(self, space: Space, study: Study, best: _Candidate, tried: list[_Candidate]) -> Choice:
        losses = {name: study.sensitivity.loss(name, best.assignments[name].grid) for name in space.free}
        target = {key: getattr(self.step, key) for key in ("target_bpw", "target_size", "max_kl")}
        facts = {
            "target": {key: value for key, value in target.items() if value is not None},
            "chosen": best.to_dict(),
            "tried": [found.to_dict() for found in tried],
            **study.facts(),
        }
        return Choice(best.assignments, best.label, losses, facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for study in self._study:
            study.close()


def _measured(space: Space, study: Study, label: str, assignments: Assignments) -> _Candidate:
    grids: Grids = {name: assignments[name].grid for name in space.free}
    return _Candidate(label, assignments, space.offer.size_bytes(assignments, label), study.loss(grids))
