"""What is measured once for a model, whatever containers are written: moments, sensitivities, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt54_convert.calibrate import text as texts
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import MeasureError
from gpt54_convert.forward.batch import Document
from gpt54_convert.forward.documents import cut
from gpt54_convert.quantize.assign import place
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import FLOAT, Grid

if TYPE_CHECKING:  # torch: only once something is measured
    from gpt54_convert.calibrate.loss import Loss
    from gpt54_convert.calibrate.sensitivity import Sensitivity

_GRADIENT_TOKENS, _ROLE_TOKENS, _JUDGE_TOKENS = 2048, 1024, 2048
_CONTEXT = 256
# A role is measured on the grid nearest to so many bits: rough enough to show, fine enough to add up.
_ROLE_BITS = 4.5
_DATA_FREE = ("rtn", "search")


class Study:
    """Sensitivities of a model's tensors, and the loss of any mix on text that they never saw.

    Three parts of the calibration text serve the gradients, the measurements of roles, and the judge.
    method: the solver that rounds; one that needs statistics is stood in for by search weighted with moments.
    Raises MeasureError where torch or text is missing.
    """

    def __init__(self, checkpoint: Checkpoint, method: str, text: str, threads: int, report: Report) -> None:
        try:
            from gpt54_convert.calibrate import gradients, loss, sensitivity
        except ImportError as error:
            raise MeasureError(
                f"a budget measures how sensitive each tensor is, and {error.name} is not installed; "
                "pip install 'gpt54-convert[torch]', or choose a --scheme instead"
            ) from error
        self.text_sha256 = texts.digest(text)
        first, second, last = _parts(text, (0.6, 0.8))
        self._report = report
        self._judged: dict[tuple[tuple[str, str], ...], float] = {}
        self.judge: Loss = loss.Loss(checkpoint, _cut(last, checkpoint, _JUDGE_TOKENS, _CONTEXT), threads)
        self._roles: Loss = loss.Loss(
            checkpoint, _cut(second, checkpoint, _ROLE_TOKENS, _CONTEXT // 2), threads
        )
        moments = gradients.moments(checkpoint, _cut(first, checkpoint, _GRADIENT_TOKENS, _CONTEXT), report)
        weighted = method not in _DATA_FREE
        self.sensitivity: Sensitivity = sensitivity.Sensitivity(
            checkpoint,
            moments,
            solver("search" if weighted else method),
            weighted,
            {name: place(checkpoint, name).role for name in checkpoint.tensors},
        )

    def prepare(self, free: Mapping[str, Sequence[Grid]]) -> None:
        """Estimate every candidate, and correct the estimates by a measurement of every role."""
        self.sensitivity.prepare(free, self._report)
        nearest: dict[str, Grid] = {}
        for name, grids in free.items():
            columns = self.sensitivity.checkpoint.tensors[name].columns
            rounded = [each for each in grids if each.kind != FLOAT]
            best = min(rounded, key=lambda each: abs(each.bpw(columns) - _ROLE_BITS))
            nearest.setdefault(self.sensitivity.roles[name], best)
        self.sensitivity.measure(self._roles, nearest, self._report)

    def loss(self, grids: Mapping[str, Grid]) -> float:
        """The measured loss of the model with these tensors on these grids."""
        key = tuple(sorted((name, each.name) for name, each in grids.items()))
        if key not in self._judged:
            with self._report.progress("measuring a mix", self.judge.token_count) as advance:
                self._judged[key] = self.judge.of(self.sensitivity.rounded(grids))
                advance(self.judge.token_count)
        return self._judged[key]

    def facts(self) -> dict[str, Any]:
        """How it was measured, for manifests."""
        return {
            "unit": self.judge.unit,
            "calibration_text_sha256": self.text_sha256,
            "tokens": {
                "gradients": _GRADIENT_TOKENS,
                "roles": self._roles.token_count,
                "judge": self.judge.token_count,
            },
            "roles": [
                {
                    "role": role,
                    "grid": found.grid,
                    "estimate": _short(found.estimate),
                    "loss": _short(found.loss),
                }
                for role, found in self.sensitivity.measured.items()
            ],
        }

    def close(self) -> None:
        """Drop what waits on disk."""
        for loss in (self.judge, self._roles):
            loss.__exit__(None, None, None)
        self.sensitivity.close()


def _cut(text: str, checkpoint: Checkpoint, tokens: int, context: int) -> list[Document]:
    try:
        return cut(text, checkpoint, tokens, context)
    except MeasureError as error:
        raise MeasureError(
            f"a budget cuts the calibration text in three and needs {tokens:,} tokens of each part: {error}"
        ) from error


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _parts(text: str, shares: Sequence[float]) -> list[str]:
    """The text cut at paragraphs near the given shares of its length."""
    edges = [0]
    for share in shares:
        at = text.find("\n\n", int(share * len(text)))
        edges.append(len(text) if at < 0 else at + 2)
    return [text[start:stop] for start, stop in zip(edges, [*edges[1:], len(text)], strict=True)]
