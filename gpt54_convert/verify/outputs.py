"""Both models run on the same tokens, and the difference judged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, MeasureError, UnsupportedError
from gpt54_convert.forward.batch import Batch, Document, stack
from gpt54_convert.forward.documents import cut
from gpt54_convert.verify import documents as docs
from gpt54_convert.verify import gates, graphs, metrics, runners, stages
from gpt54_convert.verify.artifact import Subject, grids_of, is_superblock, kind_of
from gpt54_convert.verify.judge import SPLIT_TOKENS, Bench, Judge, size_and_quality
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.runner import Runner
from gpt54_convert.verify.tally import Tally
from gpt54_convert.verify.verdict import FAIL, UNKNOWN, Check, Verdict

_FLOOR_TOKENS = 512
_TIGHT = 2e-4


def measure(
    result: Verdict,
    subject: Subject,
    source: Checkpoint,
    artifact: Checkpoint | None,
    bits: float | None,
    options: VerifyOptions,
    report: Report,
) -> Verdict:
    """`result` with the outputs' checks and figures added; what cannot be measured becomes a check.

    Raises InputError where the runtime refuses the artifact, UsageError for gates that make no sense.
    """
    kind = metrics.HIDDEN if kind_of(source) == "encoder" else metrics.LOGITS
    if subject.rounds_inputs_whole and bits is not None:
        bits = min(bits, gates.WHOLE_INPUTS_BITS)
    wanted = gates.chosen(options, kind, bits, is_superblock(artifact), subject.is_student)
    try:
        module = runners.for_container(subject.container)
        runners.load(runners.REFERENCE)
        documents = cut(docs.read_text(options, subject.fitted), source, options.tokens, options.length)
        weights = None if subject.passes else artifact
        lineup = stages.Lineup(source, weights, grids_of(subject, artifact), options)
        lineup.reference()
    except (MeasureError, UnsupportedError, InputError) as error:
        # A model that cannot be run itself is no fault of what was made from it.
        if not isinstance(error, MeasureError) and not options.quick:
            raise
        return replace(result, checks=[*result.checks, Check("outputs", "runtime", UNKNOWN, str(error))])
    with ExitStack() as stack:
        longest = max(len(d.tokens) + (0 if d.prefix is None else len(d.prefix)) for d in documents)
        runner: Runner = module.open_runner(subject.path, source, longest, options.threads)
        stack.enter_context(runner)
        try:
            judged = _judged(result, source, documents, runner, lineup, wanted, options, report)
        except MeasureError as error:
            return replace(result, checks=[*result.checks, Check("outputs", "runtime", UNKNOWN, str(error))])
        # The quick level is for what was written just now, when its graphs were checked beside torch.
        if options.quick or not hasattr(module, "open_exact"):
            return judged
        exact = graphs.Graphs(module, subject.path, source, kind, options.threads)
        exact.listen(documents, runner)
    own = lineup.dequantized() if lineup.can_split else None
    noise = judged.about.get("noise_floor", {}).get(graphs.FIGURES[kind], 0.0)
    return replace(judged, checks=[*judged.checks, *exact.check(own, noise)])


def _judged(
    result: Verdict,
    source: Checkpoint,
    documents: list[Document],
    runner: Runner,
    lineup: stages.Lineup,
    wanted: list[gates.Gate],
    options: VerifyOptions,
    report: Report,
) -> Verdict:
    kind = metrics.HIDDEN if kind_of(source) == "encoder" else metrics.LOGITS
    whole = Tally(kind)
    reference = lineup.reference()
    with report.progress("running both models", sum(len(d.tokens) for d in documents)) as advance:
        for batch in docs.batches(documents, source, options):
            whole.add(batch, reference.logits(batch), runner.logits(batch))
            advance(sum(batch.lengths))
    about = {**result.about, **_protocol(reference, runner, whole, options)}
    problem = _infinite(whole)
    if problem is not None:
        return replace(result, about=about, checks=[*result.checks, problem])
    figures = whole.figures()
    # The quick level measures it only where gates are so tight that it decides.
    tight = any(gate.sign == "<=" and gate.factor < _TIGHT for gate in wanted)
    floor = _noise_floor(source, documents, lineup, options, kind) if tight or not options.quick else {}
    about["noise_floor"] = floor
    judge = Judge(Bench(source, documents, lineup, runner, options), kind, figures, floor)
    checks = [*result.checks, *map(judge, wanted)]
    about |= judge.about
    split, plots = _where(source, documents, runner, lineup, options, kind, report)
    checks += _first_layer(checks, plots)
    return replace(
        result,
        about=about,
        checks=checks,
        figures={name: figure.to_dict() for name, figure in figures.items()},
        split=split,
        plots={**result.plots, **plots, **_plots(whole, kind), **size_and_quality(about, figures, judge)},
    )


def _protocol(reference: Runner, runner: Runner, tally: Tally, options: VerifyOptions) -> dict[str, Any]:
    return {
        "reference_runtime": reference.runtime,
        "runtime": runner.runtime,
        "protocol": {
            "text": str(options.text) if options.text else "held-out text of gpt54-convert",
            "tokens": tally.token_count,
            "documents": tally.document_count,
            "context": options.length,
            "prefix_tokens": "up to 96 tokens to the encoder of an encoder-decoder",
            "scored": "every token of a document, from its first on",
        },
    }


def _infinite(tally: Tally) -> Check | None:
    if not tally.reference_finite:
        detail = "the reference's own answers are not finite; the model itself is broken"
        return Check("outputs", "finite", UNKNOWN, detail)
    if not tally.finite:
        return Check("outputs", "finite", FAIL, "the artifact answers with NaN or infinity")
    return None


def _noise_floor(
    source: Checkpoint,
    documents: list[Document],
    lineup: stages.Lineup,
    options: VerifyOptions,
    kind: str,
) -> dict[str, float]:
    """The reference in float32 against itself in float64: what arithmetic alone makes of it."""
    tally = Tally(kind)
    exact, plain = lineup.exact(), lineup.reference()
    for index, document in enumerate(docs.some(documents, _FLOOR_TOKENS)):
        # One by one: transformers' masks of padded batches overflow in float64.
        batch = stack([document], index)
        tally.add(batch, exact.logits(batch), plain.logits(batch))
    lineup.drop("exact")
    if not (tally.finite and tally.reference_finite):
        return {}
    figures = tally.figures()
    names = ("kl_mean_nats", "logits_nmse", "logits_max_abs", "hidden_nmse", "hidden_max_abs")
    return {name: figures[name].value for name in names if name in figures}


def _where(
    source: Checkpoint,
    documents: list[Document],
    runner: Runner,
    lineup: stages.Lineup,
    options: VerifyOptions,
    kind: str,
    report: Report,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The split of the error by stage, and the error behind each layer; nothing unless asked for."""
    if options.level != "all" or not lineup.can_split:
        return {}, {}
    part: list[Batch] = list(docs.batches(docs.some(documents, SPLIT_TOKENS), source, options))
    try:
        with report.progress("finding where the error arises", len(part)) as advance:
            return stages.split(part, lineup, runner, kind, advance)
    except InputError as error:  # a tensor is missing, which the checks have said already
        report.note(f"the error is not split into its stages: {error}")
        return {}, {}


def _first_layer(checks: list[Check], plots: Mapping[str, Any]) -> list[Check]:
    """Of a failure: the layer behind which the error leaves the curve of plain rounding, if one does."""
    failed = any(check.outcome == FAIL and check.kind == "outputs" for check in checks)
    beyond = [row for row in plots.get("layer_error", ()) if row["beyond"]]
    if not failed or not beyond:
        return []
    first = beyond[0]
    detail = (
        f"the error leaves the curve of plain rounding behind {first['name']}: {first['nmse']:.3g} of the "
        f"hidden states, where rounding leaves {first['rounding_nmse']:.3g}"
    )
    return [Check("outputs", "first layer", FAIL, detail)]


def _plots(tally: Tally, kind: str) -> dict[str, Any]:
    if kind == metrics.HIDDEN:
        return {"cosine_by_position": tally.by_position("cosine")}
    kl = np.log10(np.maximum(tally.columns["kl"], 1e-12))
    counts, edges = np.histogram(kl, bins=40)
    return {
        "kl_histogram": {"log10_edges": edges.tolist(), "counts": counts.tolist()},
        "top1_by_position": tally.by_position("top1"),
    }
