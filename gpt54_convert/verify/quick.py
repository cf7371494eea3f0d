"""What `quantize` and `convert` look at after writing: seconds and bounded memory, whatever the model.

Config, tokenizer and weights are compared without any runtime; the weights of a large model by a sample of
their rows.  The model is run only where it is small.  Everything here is deterministic (one thread, the same
text), because its verdict stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.words import not_installed
from gpt54_convert.errors import ConvertError, MeasureError, UnsupportedError
from gpt54_convert.verify import outputs, runners, static, tensors, tokenizer
from gpt54_convert.verify.artifact import Subject, body_bits, load_tensors
from gpt54_convert.verify.options import QUICK, VerifyOptions
from gpt54_convert.verify.verdict import FAIL, PASS, SKIPPED, UNKNOWN, Check, Verdict

WEIGHTS = 1 << 26  # compared in all: a second or two
# Of a model that is run.  torch alone takes more memory than all the rest of a conversion, so only models
# whose conversion nobody would call large are run beside it.
RUN_WEIGHTS = 50_000_000
_VOCABULARY = 2000  # tokens tried by themselves
_OPTIONS = VerifyOptions(level=QUICK, tokens=768, context=64, threads=1)
# What the manifest keeps of the figures; two digits, which no rounding of sums disturbs.
_KEPT = ("kl_mean_nats", "top1_agreement", "hidden_nmse", "cosine_mean")


def check(subject: Subject, source: Checkpoint, report: Report) -> Verdict:
    """The verdict over what was just written.  subject: as it lies there, with the manifest it will get.

    What is wrong with the artifact raises nothing: a file that cannot be read or run back is a failed check.
    """
    about: dict[str, Any] = {"artifact": str(subject.folder), "against": str(source.source.path)}
    verdict = Verdict(about, [])
    try:
        artifact = load_tensors(subject)
        verdict = replace(verdict, checks=_static(subject, source, artifact, report))
        if verdict.outcome != FAIL:
            verdict = _outputs(verdict, subject, source, artifact, report)
    except UnsupportedError as error:
        problem = Check("outputs", "runtime", UNKNOWN, str(error))
        verdict = replace(verdict, checks=[*verdict.checks, problem])
    except ConvertError as error:
        problem = Check("files", "opening", FAIL, f"what was written cannot be read or run: {error}")
        verdict = replace(verdict, checks=[*verdict.checks, problem])
    if verdict.outcome == UNKNOWN:
        verdict = replace(verdict, about={**verdict.about, "missing": runners.missing(subject.container)})
    return verdict


def _static(subject: Subject, source: Checkpoint, artifact: Checkpoint | None, report: Report) -> list[Check]:
    checks = static.check_config(subject, source, artifact)
    try:
        checks += tokenizer.check(subject, source, _VOCABULARY)
    except MeasureError as error:
        checks.append(Check("tokenizer", "ids", UNKNOWN, str(error)))
    if artifact is not None and subject.container == "gguf" and checks[-1].outcome == UNKNOWN:
        checks += tokenizer.check_structure(source, artifact)
    if artifact is None:
        detail = f"the weights of {subject.container} artifacts are judged by the model's answers alone"
        return [*checks, Check("tensors", "all", SKIPPED, detail)]
    return checks + tensors.check(source, artifact, report, WEIGHTS, subject.calibrated)[0]


def _outputs(
    verdict: Verdict, subject: Subject, source: Checkpoint, artifact: Checkpoint | None, report: Report
) -> Verdict:
    if source.parameter_count > RUN_WEIGHTS:
        detail = f"{source.parameter_count:,} weights are too many to run in a moment"
        return replace(verdict, checks=[*verdict.checks, Check("outputs", "runtime", SKIPPED, detail)])
    missing = runners.missing(subject.container)
    if missing:
        detail = f"{not_installed(missing)}, so the model was not run"
        return replace(verdict, checks=[*verdict.checks, Check("outputs", "runtime", UNKNOWN, detail)])
    bits = body_bits(subject, artifact)
    return outputs.measure(verdict, subject, source, artifact, bits, _OPTIONS, report)


def summary(verdict: Verdict | None) -> dict[str, Any]:
    """What the manifest says of a verdict; None where verifying was not wanted."""
    if verdict is None:
        return {"verdict": "not-verified"}
    found: dict[str, Any] = {"level": "quick", "verdict": verdict.outcome, "checks": outcomes(verdict)}
    if verdict.figures:
        figures = {name: _rounded(verdict.figures[name]) for name in _KEPT if name in verdict.figures}
        runtime, tokens = verdict.about["runtime"], verdict.about["protocol"]["tokens"]
        found["outputs"] = {"runtime": runtime, "tokens": tokens, **figures}
    return found


def sentence(verdict: Verdict | None) -> str:
    """The same for the artifact's card; empty where there is nothing to tell."""
    found = summary(verdict)
    measured = found.get("outputs", {})
    if "kl_mean_nats" in measured:
        figures = (
            f"mean KL divergence {measured['kl_mean_nats']} nats a token, the same most likely token for "
            f"{100 * measured['top1_agreement']:.0f} %"
        )
    elif measured:
        figures = (
            f"cosine of hidden states {measured['cosine_mean']}, squared error {measured['hidden_nmse']}"
        )
    else:
        return ""
    return (
        f"Run beside the float model when it was made ({measured['tokens']} tokens, "
        f"{measured['runtime']}): {figures}; verdict: {found['verdict']}."
    )


def outcomes(verdict: Verdict) -> dict[str, str]:
    """The worst outcome of each kind of check."""
    order = (FAIL, UNKNOWN, SKIPPED, PASS)
    kinds = dict.fromkeys(check.kind for check in verdict.checks)
    return {
        kind: min((c.outcome for c in verdict.checks if c.kind == kind), key=order.index) for kind in kinds
    }


def _rounded(figure: Mapping[str, Any]) -> float:
    return float(f"{figure['value']:.2g}")
