"""What is demanded: default gates by kind and bits per weight, gates from the user; how they are judged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.verify import metrics
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.tally import Measured
from gpt54_convert.verify.verdict import FAIL, PASS, UNKNOWN, Check

NUMBER = r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_GATE = re.compile(rf"\s*([a-z][a-z0-9_]*)\s*(<=|>=)\s*(?:{NUMBER}\s*\*\s*)?(rtn|baseline|{NUMBER}%?)\s*")
_SUFFIXES = ("", "_nats", "_agreement", "_mean_nats", "_mean")
ANCHORS = ("rtn", "baseline")

# bits per weight at least, mean KL at most (nats a token), top-1 agreement at least: from published tables
# of 7 B and 8 B models (llama.cpp's quantize README); K-quants of 4 bits stand apart.
_LOGITS = (
    (31.0, 1e-6, 0.998),
    (15.0, 1e-4, 0.99),
    (7.9, 2e-3, 0.975),
    (6.2, 8e-3, 0.955),
    (5.2, 2e-2, 0.94),
    (4.0, 8e-2, 0.88),
    (3.3, 0.12, 0.84),
    (2.5, 0.5, 0.70),
    (0.0, 1.0, 0.55),
)
# Inputs rounded with one scale a token, or a fixed one, cost what weights of so many bits do (measured on the
# embedded model: 8e-4 and 1.2e-3 nats, where weights alone cost 1e-4).
WHOLE_INPUTS_BITS = 5.2
_SUPERBLOCKS_4 = (4.0, 5e-2, 0.91)
# bits per weight at least, squared error over squared hidden states at most, mean cosine at least.
_HIDDEN = (
    (31.0, 1e-6, 0.999999),
    (15.0, 1e-4, 0.9999),
    (7.9, 2e-3, 0.999),
    (6.2, 8e-3, 0.995),
    (5.2, 2e-2, 0.99),
    (4.0, 6e-2, 0.97),
    (3.3, 0.15, 0.93),
    (2.5, 0.4, 0.80),
    (0.0, 0.7, 0.60),
)


@dataclass(frozen=True)
class Gate:
    """`figure <= factor * anchor`, or `>=`; without an anchor, factor is the limit itself.

    or_rounding: a default, which small models may meet by being as good as plain rounding instead.
    slack: how far below its anchor a figure may be in any case: of a few per cent, a tenth is chance.
    """

    figure: str
    sign: str
    factor: float
    anchor: str = ""
    or_rounding: bool = False
    slack: float = 0.0

    def relative(self) -> Gate:
        """The same figure against plain rounding, a tenth worse at most (or, of an agreement, 5 points)."""
        if self.sign == "<=":
            return Gate(self.figure, "<=", 1.1, "rtn")
        return Gate(self.figure, ">=", 0.9, "rtn", slack=0.05)

    def __str__(self) -> str:
        return f"{self.figure} {self.sign} {self.factor:g}{'*' + self.anchor if self.anchor else ''}"


def parse(text: str, known: tuple[str, ...]) -> Gate:
    """A gate as the user writes it.  Raises UsageError where it is none, or names no figure."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--gate {text!r} is no gate; write 'kl_mean<=0.05', 'top1>=0.9', 'kl_mean<=1.1*rtn' or "
            "'kl_mean<=1.1*baseline'"
        )
    name, sign, factor, right = match[1], match[2], float(match[3] or 1), match[4]
    figure = next((name + suffix for suffix in _SUFFIXES if name + suffix in known), None)
    if figure is None:
        near = get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"--gate {text!r}: there is no figure {name!r}; {hint}There are {', '.join(known)}")
    if right in ANCHORS:
        return Gate(figure, sign, factor, right)
    limit = float(right.rstrip("%")) / (100 if right.endswith("%") else 1)
    if factor * limit > 1 and figure.endswith(("_agreement", "cosine_mean")):
        hint = f"; write {right}% or {limit / 100:g}" if "%" not in right and limit <= 100 else ""
        raise UsageError(f"--gate {text!r}: {figure} is 1 at most{hint}")
    return Gate(figure, sign, factor * limit)


def defaults(kind: str, bits: float, superblock: bool) -> list[Gate]:
    """The gates of an artifact of `bits` per weight; kind is `logits` or `hidden`."""
    if kind == "hidden":
        _, error, cosine = next(row for row in _HIDDEN if bits >= row[0])
        return [
            Gate("hidden_nmse", "<=", error, or_rounding=True),
            Gate("cosine_mean", ">=", cosine, or_rounding=True),
        ]
    row = next(row for row in _LOGITS if bits >= row[0])
    if superblock and row[0] == _SUPERBLOCKS_4[0]:
        row = _SUPERBLOCKS_4
    return [
        Gate("kl_mean_nats", "<=", row[1], or_rounding=True),
        Gate("top1_agreement", ">=", row[2], or_rounding=True),
    ]


def table(kind: str) -> list[tuple[float, float]]:
    """(bits per weight at least, error at most) of the default gates."""
    return [(row[0], row[1]) for row in (_HIDDEN if kind == "hidden" else _LOGITS)]


def against_baseline(kind: str) -> list[Gate]:
    """What `--baseline` alone demands: a tenth worse at most."""
    figure = "hidden_nmse" if kind == "hidden" else "kl_mean_nats"
    return [Gate(figure, "<=", 1.1, "baseline")]


def read_baseline(path: Path) -> dict[str, float]:
    """The figures of an earlier JSON report.  Raises InputError where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--baseline {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"--baseline {path}: is not JSON ({error})") from error
    if not isinstance(content, dict) or not str(content.get("schema", "")).startswith(
        "gpt54-convert/verify/"
    ):
        raise InputError(f"--baseline {path}: is no report of `gpt54-convert verify --json`")
    return {key: float(value) for key, value in content.items() if isinstance(value, (int, float))}


def judge(
    gate: Gate,
    measured: Mapping[str, Measured],
    anchors: Mapping[str, Mapping[str, Measured]],
) -> Check:
    """Pass where the whole 95 % interval is within the gate, fail where all of it is beyond."""
    found = measured[gate.figure]
    limit = gate.factor
    samples = found.samples
    if gate.anchor:
        anchor = anchors.get(gate.anchor, {}).get(gate.figure)
        if anchor is None:
            detail = f"{gate}: there is no {gate.figure} of {gate.anchor} to compare with"
            return Check("outputs", gate.figure, UNKNOWN, detail, found.value)
        limit = gate.factor * anchor.value
        # Resampled together: both were measured on the same documents.
        samples = samples - gate.factor * anchor.samples + limit
        if gate.slack:
            limit = min(limit, anchor.value - gate.slack)
    low, high = (float(x) for x in np.quantile(samples, (0.025, 0.975)))
    good, bad = (high <= limit, low > limit) if gate.sign == "<=" else (low >= limit, high < limit)
    bounds = f"{found.value:.4g}, 95 % interval {low:.4g} to {high:.4g}, gate {gate}"
    if good:
        return Check("outputs", gate.figure, PASS, bounds, found.value, limit)
    if bad:
        return Check("outputs", gate.figure, FAIL, bounds, found.value, limit)
    detail = f"{bounds}: too few tokens to decide; give more --tokens"
    return Check("outputs", gate.figure, UNKNOWN, detail, found.value, limit)


def check_usage(options: VerifyOptions) -> None:
    """Raise UsageError for gates that cannot be judged, before anything is read."""
    known = figure_names("logits") + figure_names("hidden")
    wanted = [parse(text, known) for text in options.gate]
    if any(gate.anchor == "baseline" for gate in wanted) and options.baseline is None:
        raise UsageError("a gate speaks of the baseline, but there is none; name its report with --baseline")
    if (options.gate or options.baseline) and not options.outputs:
        raise UsageError("gates judge the model's answers, which --level tensors does not look at")
    if options.baseline is not None:
        read_baseline(options.baseline)


def figure_names(kind: str) -> tuple[str, ...]:
    """The figures of a kind of output, in the order of reports."""
    return tuple(figure.name for metric in metrics.of_kind(kind) for figure in metric.FIGURES)


def of_student(kind: str) -> list[Gate]:
    """What is demanded of a pruned or distilled model: to predict text nearly as well as its teacher."""
    if kind == "hidden":
        return [Gate("cosine_mean", ">=", 0.8)]
    return [Gate("perplexity_ratio", "<=", 1.5)]


def chosen(
    options: VerifyOptions, kind: str, bits: float | None, superblock: bool, student: bool = False
) -> list[Gate]:
    """The gates to judge by: the user's where there are any, and the baseline's; else the defaults.

    Raises UsageError for a figure that this kind of model does not have, or where bits are not known.
    """
    wanted = [parse(text, figure_names(kind)) for text in options.gate]
    if options.baseline is not None and not any(gate.anchor == "baseline" for gate in wanted):
        wanted += against_baseline(kind)
    if options.gate:
        return wanted
    if student:
        return [*of_student(kind), *wanted]
    if bits is None:
        raise UsageError(
            "the artifact's bits per weight are not known (no manifest.json), so there is no default gate; "
            "give one with --gate"
        )
    return [*defaults(kind, bits, superblock), *wanted]
