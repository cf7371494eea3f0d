"""The course of a verification: files, config, tokenizer, tensors, outputs, verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt54_convert import loaders
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, MeasureError, UsageError
from gpt54_convert.verify import documents, gates, generating, outputs, static, tensors, tokenizer
from gpt54_convert.verify.artifact import Subject, body_bits, check_files, load_tensors, locate, size_bytes
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.verdict import FAIL, UNKNOWN, Check, Verdict


def verify(path: Path, against: Path | None, options: VerifyOptions, report: Report) -> Verdict:
    """See `gpt54_convert.verify.verify`."""
    gates.check_usage(options)
    subject = locate(path)
    documents.read_text(options, subject.fitted)  # what is wrong with it should be said before any work
    source_path = _source_path(subject, against)
    checks = check_files(subject)
    about: dict[str, Any] = {
        "artifact": str(path),
        "against": str(source_path),
        "container": subject.container,
        "size_bytes": size_bytes(subject),
    }
    if any(check.outcome == FAIL for check in checks):
        return Verdict(about, checks)  # nothing measured on damaged files would mean anything
    source = loaders.load(source_path)
    artifact = load_tensors(subject)
    other = static.check_kind(subject, source, artifact)
    if other is not None:
        return Verdict(about, [*checks, other])
    about["bits_per_weight"] = bits = body_bits(subject, artifact)
    result = Verdict(about, checks)
    if options.tensors:
        result = _static(result, subject, source, artifact, report)
        if not (options.outputs or result.tensors):
            detail = "the weights of this artifact cannot be compared; judge its answers, with --level all"
            unknown = Check("tensors", "all", UNKNOWN, detail)
            return replace(result, checks=[*result.checks, unknown])
    if options.outputs:
        result = outputs.measure(result, subject, source, artifact, bits, options, report)
    return result


def _static(
    result: Verdict, subject: Subject, source: Checkpoint, artifact: Checkpoint | None, report: Report
) -> Verdict:
    """What can be told without running the model."""
    checks = list(result.checks)
    if not subject.is_student:
        checks += static.check_config(subject, source, artifact) + generating.check(subject, source)
    try:
        checks += tokenizer.check(subject, source)
    except MeasureError as error:
        checks.append(Check("tokenizer", "ids", UNKNOWN, str(error)))
    rows: list[dict[str, Any]] = []
    if subject.passes:
        told = (
            "so it is judged as a student, by how well it predicts text"
            if subject.is_student
            else ("so they are judged by the model's answers alone")
        )
        report.note(f"the weights were changed on purpose ({', '.join(subject.passes)}), {told}")
    elif artifact is not None:
        found, rows = tensors.check(source, artifact, report, calibrated=subject.calibrated)
        checks += found
    else:
        report.note(f"the weights of {subject.container} artifacts are judged by the model's answers alone")
    plots = {"tensor_error": tensors.by_layer(rows)}
    return Verdict(result.about, checks, tensors=rows, plots=plots)


def _source_path(subject: Subject, against: Path | None) -> Path:
    if against is not None:
        if not against.exists():
            raise InputError(f"--against {against}: does not exist")
        return against
    if subject.source is None:
        raise UsageError(
            f"{subject.folder}: has no manifest.json that records what it was made from; name the model "
            "with --against"
        )
    if not subject.source.exists():
        raise InputError(
            f"{subject.source}: is what {subject.folder} was made from, but is gone; name the model with "
            "--against"
        )
    return subject.source
