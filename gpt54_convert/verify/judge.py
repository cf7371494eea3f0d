"""From figures and gates to checks: what arithmetic, small models and integer kernels cost is measured first.

A default gate that is missed is asked twice more.  Small models lose more than the large ones that the
tables were measured on: as good as plain rounding of the same model is good enough.  And some runtimes round
the inputs of quantized layers to 8 bits, whatever the artifact: that floor is measured in torch, and only an
artifact whose weights alone are good, in a runtime that adds no more than the floor, passes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.forward.batch import Document
from gpt54_convert.verify import documents as docs
from gpt54_convert.verify import gates, metrics, stages
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.runner import Runner
from gpt54_convert.verify.tally import Measured, Tally
from gpt54_convert.verify.verdict import FAIL, PASS, UNKNOWN, Check

SPLIT_TOKENS = 1024
_SMALL_MODEL = 1_000_000_000  # parameters
_FLOORS = 2.0  # the runtime may add this many times what 8-bit inputs add in torch
_FLOATS = 1e-4  # nats, or squared error: what gates of 16 bits and more allow
_TIES = 0.1  # of what its gate allows: an error so small that agreement says nothing
_ERRORS = ("kl_mean_nats", "hidden_nmse")
Figures = Mapping[str, Measured]


@dataclass(frozen=True)
class Bench:
    """What can be run beside each other, and on which text."""

    source: Checkpoint
    documents: list[Document]
    lineup: stages.Lineup
    runner: Runner
    options: VerifyOptions

    def compare(self, first: Any, second: Any, kind: str, tokens: int | None = None) -> Figures:
        """Figures of `second` against `first`; none where an answer is not finite."""
        tally = Tally(kind)
        part = self.documents if tokens is None else docs.some(self.documents, tokens)
        for batch in docs.batches(part, self.source, self.options):
            tally.add(batch, first.logits(batch), second.logits(batch))
        return tally.figures() if tally.finite and tally.reference_finite else {}


class Judge:
    """Judges gates; whatever needs another run is measured when a gate first needs it.

    about: what was found on the way, for the report.  measured: figures of other runs, by their name.
    """

    def __init__(self, bench: Bench, kind: str, figures: Figures, floor: Mapping[str, float]) -> None:
        self._bench, self._kind, self._figures, self._floor = bench, kind, figures, floor
        self.measured: dict[str, Figures] = {}
        self.about: dict[str, Any] = {}
        self._error_check: Check | None = None

    def __call__(self, gate: gates.Gate) -> Check:
        check = self._asked(gate)
        if gate.figure in _ERRORS:
            self._error_check = check
        return check

    def _asked(self, gate: gates.Gate) -> Check:
        check = self._judge(gate, self._figures)
        if check.outcome != PASS and gate.or_rounding and self._meets(gate, check):
            told = check.detail.partition(": too few")[0]
            check = replace(check, outcome=PASS, detail=f"{told} (the divergence is surely small)")
        if check.outcome == PASS or not gate.or_rounding or not self._bench.lineup.has_grids:
            return check
        detail = check.detail
        if self._bench.source.parameter_count < _SMALL_MODEL:
            relative = self._judge(gate.relative(), self._figures)
            if relative.outcome == PASS:
                told = f"{relative.detail} (a small model: misses {gate}, but is as good as plain rounding)"
                return replace(relative, detail=told)
            detail += f"; nor surely as good as plain rounding: {relative.detail}"
            check = _less_sure(check, relative)
        check = replace(check, detail=detail)
        return self._without_runtime(gate, check) if self._bench.runner.int8_inputs else check

    def _meets(self, gate: gates.Gate, check: Check) -> bool:
        """Whether an agreement is met as far as can be told, the error itself being well within its gate.

        Or missed by a float artifact, the error being a tenth of what its gate allows: then the first tokens
        are as good as ties, as in models whose answers are nearly flat.  (Those of few bits are asked whether
        plain rounding does better; so much error as they are allowed may hide a fault in such models.)
        """
        error = self._error_check
        if gate.sign != ">=" or error is None or error.outcome != PASS or check.value is None:
            return False
        value, limit = error.value, error.limit
        if value is not None and limit is not None and limit <= _FLOATS and value <= _TIES * limit:
            return True
        return check.outcome == UNKNOWN and check.limit is not None and check.value >= check.limit

    def _judge(self, gate: gates.Gate, figures: Figures) -> Check:
        anchors = {gate.anchor: self._anchor(gate.anchor)} if gate.anchor else {}
        check = gates.judge(gate, figures, anchors)
        noise = self._floor.get(gate.figure)
        if noise is None or check.limit is None or check.value is None or gate.sign != "<=":
            return check
        if noise > check.limit and not (gate.anchor and check.value <= noise):
            detail = f"the reference differs from itself by {noise:.3g}, more than the gate {gate} allows"
            return replace(check, outcome=UNKNOWN, detail=detail)
        if check.value <= noise:
            detail = f"{check.detail}; indistinguishable from the reference"
            return replace(check, outcome=PASS, detail=detail)
        return check

    def _without_runtime(self, gate: gates.Gate, check: Check) -> Check:
        """`check`, or a pass by what the weights do in torch, if the runtime adds no more than it must."""
        lineup = self._bench.lineup
        weights = self._once("weights", lambda: self._run(lineup.reference(), lineup.stored(), None))
        if not weights:
            return check
        alone = self._judge(gate, weights)
        if alone.outcome != PASS and self._bench.source.parameter_count < _SMALL_MODEL:
            alone = self._judge(gate.relative(), weights)
        if alone.outcome != PASS:
            told = f"{check.detail}; in torch its weights alone have {alone.detail}"
            return replace(_less_sure(check, alone), detail=told)
        added, floor = self._runtime_error(), self._runtime_floor()
        told = (
            f"{self._bench.runner.runtime} adds {added:.3g} to the weights' own error, where 8-bit inputs "
            f"of layers must add {floor:.3g}"
        )
        if not added <= _FLOORS * floor:
            return replace(check, outcome=FAIL, detail=f"{check.detail}; {told}")
        return replace(alone, detail=f"weights alone: {alone.detail} ({told})")

    def _runtime_error(self) -> float:
        """KL, or squared error, of the runtime against the same weights in torch."""
        lineup, runner = self._bench.lineup, self._bench.runner
        return self._error(self._once("runtime", lambda: self._run(lineup.stored(), runner, SPLIT_TOKENS)))

    def _runtime_floor(self) -> float:
        """What 8-bit inputs alone do to the same weights, in torch."""
        lineup = self._bench.lineup
        found = self._once("int8", lambda: self._run(lineup.stored(), lineup.stored_int8(), SPLIT_TOKENS))
        floor = self._error(found)
        self.about["runtime_floor"] = floor
        return floor

    def _error(self, figures: Figures) -> float:
        return next((figures[name].value for name in _ERRORS if name in figures), float("inf"))

    def _anchor(self, name: str) -> Figures:
        lineup = self._bench.lineup
        if name == "rtn":
            return self._once(name, lambda: self._run(lineup.reference(), lineup.rounded(), None))
        return self._once(name, self._baseline)

    def _run(self, first: Any, second: Any, tokens: int | None) -> Figures:
        return self._bench.compare(first, second, self._kind, tokens)

    def _once(self, name: str, measure: Any) -> Figures:
        if name not in self.measured:
            self.measured[name] = measure()
        return self.measured[name]

    def _baseline(self) -> Figures:
        path = self._bench.options.baseline
        earlier = gates.read_baseline(path) if path else {}
        count = len(next(iter(self._figures.values())).samples)
        return {name: Measured(name, value, np.full(count, value)) for name, value in earlier.items()}


def _less_sure(check: Check, other: Check) -> Check:
    """`check`, no longer a failure where the other way to pass is open."""
    return replace(check, outcome=UNKNOWN) if other.outcome == UNKNOWN else check


def size_and_quality(about: Mapping[str, Any], figures: Figures, judge: Judge) -> dict[str, Any]:
    """For the plot of size against quality: points (bits per weight, error), and the default gates."""
    figure = next((name for name in _ERRORS if name in figures), None)
    bits = about.get("bits_per_weight")
    if figure is None or bits is None:
        return {}
    points = [{"name": "this artifact", "bits_per_weight": bits, "error": figures[figure].value}]
    for name, found in judge.measured.items():
        if name in gates.ANCHORS and figure in found:
            told = {"rtn": "plain rounding (torch)", "baseline": "baseline"}[name]
            size = found.get("bits_per_weight")
            at = bits if size is None else size.value
            points.append({"name": told, "bits_per_weight": at, "error": found[figure].value})
    limits = gates.table(metrics.HIDDEN if figure == "hidden_nmse" else metrics.LOGITS)
    return {"size_quality": {"figure": figure, "points": points, "gates": limits}}
