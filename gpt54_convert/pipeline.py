"""The main flow: load, plan, write every container in one pass over the weights, publish."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from gpt54_convert import __version__, loaders
from gpt54_convert.calibrate import text as texts
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Advance, Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.workspace import check_free, check_space, staged, workspace
from gpt54_convert.exporters import card, manifest
from gpt54_convert.exporters._sink import Sink
from gpt54_convert.method import resolve
from gpt54_convert.plan import ContainerPlan, containers, plan
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.recipe import Quantize, Recipe
from gpt54_convert.summary import tensor_rows, totals_of
from gpt54_convert.verify import overlap, quick
from gpt54_convert.verify.artifact import written
from gpt54_convert.verify.stage import Gate
from gpt54_convert.verify.verdict import FAIL, Check, Verdict


@dataclass(frozen=True)
class Artifact:
    """What was written: the folder of one container, with its manifest's tensors and totals.

    verdict: of the quick look at it; None where none was wanted.
    """

    container: str
    label: str
    folder: Path
    files: tuple[Path, ...]
    tensors: tuple[Mapping[str, Any], ...]
    totals: Mapping[str, Any]
    verdict: Verdict | None = None


def run(recipe: Recipe, report: Report) -> list[Artifact]:
    """Do the whole job; nothing is left in the output folder unless all of it succeeds.

    Raises a ConvertError for whatever the user can mend.
    """
    return run_on(loaders.load(recipe.source), recipe, report)


def run_on(checkpoint: Checkpoint, recipe: Recipe, report: Report) -> list[Artifact]:
    """`run` for a checkpoint that lies nowhere (a fresh one)."""
    # What is in the way of a container asked for by name is told before a budget's search, not after it.
    asked = [name for name in recipe.export.to if name in containers()]
    check_free(recipe.export.output, asked, recipe.export.overwrite, checkpoint.source.files)
    recipe = resolve(recipe, checkpoint, report)
    if recipe.passes:
        _refuse_early(recipe, checkpoint)
    work = fingerprint(recipe, checkpoint)
    try:
        with workspace(recipe.export.output, work) as folder:
            context = Context(report, folder, recipe.export.threads, checkpoint)
            for step in recipe.passes:
                checkpoint = step.apply(checkpoint, context)
            return _export(recipe, checkpoint, context)
    except BaseException:
        if folder.exists():
            report.note(f"what was finished is kept in {folder}: the same command goes on from there")
        raise


def _refuse_early(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise before all passes what the export would raise after them."""
    files = checkpoint.source.files
    for step in recipe.passes:
        checkpoint = step.outline(checkpoint)
    plans = plan(recipe, checkpoint, Report())
    names = [planned.container for planned in plans]
    check_free(recipe.export.output, names, recipe.export.overwrite, files)
    check_space(recipe.export.output, sum(planned.size_bytes for planned in plans))


def fingerprint(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """Names the work of a recipe on a source as it lies there now; a changed file is other work."""
    files = [_stat(path) for path in checkpoint.source.files]
    used = [*_fitted(recipe), getattr(recipe.step, "stats", None)]
    files += [_stat(path) for path in used if path is not None and path.is_file()]
    text = json.dumps([__version__, recipe.to_dict(), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stat(path: Path) -> tuple[str, int, int]:
    return str(path), path.stat().st_size, path.stat().st_mtime_ns


def _export(recipe: Recipe, checkpoint: Checkpoint, context: Context) -> list[Artifact]:
    report = context.report
    plans = plan(recipe, checkpoint, report)
    names = [planned.container for planned in plans]
    check_free(recipe.export.output, names, recipe.export.overwrite, checkpoint.source.files)
    check_space(recipe.export.output, sum(planned.size_bytes for planned in plans))
    details = {**recipe.to_dict(), **_calibrate(plans, recipe, checkpoint, context)}
    plans, measured = _measured(plans, recipe, checkpoint, context)
    details |= measured
    if fitted := overlap.record(_fitted(recipe)):
        details["fitted_to"] = fitted
    if digests := texts.record(recipe.passes):
        details["passes_text_sha256"] = digests
    with staged(recipe.export.output, names, recipe.export.overwrite) as folder:
        sinks = [planned.sink(folder / planned.container) for planned in plans]
        write(sinks, report, recipe.export.threads)
        plans = [_closed(planned, sink, report) for planned, sink in zip(plans, sinks, strict=True)]
        source = manifest.source_entry(checkpoint.source, report)
        verdicts = [_verified(planned, folder, checkpoint, recipe, details, report) for planned in plans]
        for planned, verdict in zip(plans, verdicts, strict=True):
            _finish(planned, folder / planned.container, source, details, verdict)
        return [
            _artifact(planned, folder, recipe.export.output, verdict)
            for planned, verdict in zip(plans, verdicts, strict=True)
        ]


def _closed(planned: ContainerPlan, sink: Sink, report: Report) -> ContainerPlan:
    """The plan as it was carried out; what only the finished files have shown is told now."""
    sink.close()
    for note in sink.notes:
        if note not in planned.notes:
            report.note(note)
    return replace(planned, size_bytes=sink.size_bytes, notes=tuple(sink.notes))


def _calibrate(
    plans: Sequence[ContainerPlan], recipe: Recipe, checkpoint: Checkpoint, context: Context
) -> dict[str, Any]:
    """Make the walks that the plans need; what was calibrated on, for the manifest."""
    solutions = {id(solution): solution for planned in plans for solution in planned.solutions}
    if not isinstance(recipe.step, Quantize):
        return {}
    if recipe.step.stats is not None:
        return {"calibration": {"stats_sha256": manifest.sha256(recipe.step.stats)}}
    if not solutions:
        return {}
    from gpt54_convert.calibrate.solve import solve

    facts = solve(
        list(solutions.values()),
        checkpoint,
        recipe.step.solver,
        recipe.step,
        context.workspace,
        context.report,
        context.threads,
    )
    return {"calibration": facts}


def _measured(
    plans: list[ContainerPlan], recipe: Recipe, checkpoint: Checkpoint, context: Context
) -> tuple[list[ContainerPlan], dict[str, Any]]:
    """The plans with the ranges of activations that they lack; what those were measured on, for manifests."""
    if not isinstance(recipe.step, Quantize) or all(planned.options.ranges is None for planned in plans):
        return plans, {}
    from gpt54_convert.calibrate import ranges

    names = {name for planned in plans for name in planned.options.ranges or ()}
    found, facts = ranges.measure(checkpoint, names, recipe.step, context.report, context.threads)
    plans = [
        replace(planned, options=replace(planned.options, ranges=planned.options.ranges and found))
        for planned in plans
    ]
    return plans, {"activation_ranges": facts}


def _verified(
    planned: ContainerPlan,
    staging: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    details: Mapping[str, Any],
    report: Report,
) -> Verdict | None:
    """A quick look at what was written, against the very checkpoint that was exported."""
    if not recipe.export.verify:
        return None
    told = {key: value for key, value in details.items() if key != "passes"}  # they are done
    manifest_so_far = {"tensors": tensor_rows(planned), "recipe": told}
    try:
        subject = written(planned.container, staging / planned.container, manifest_so_far)
        verdict = quick.check(subject, checkpoint, report)
    except Exception as error:  # a fault of ours must not cost the user an artifact, nor pass for a verdict
        problem = Check("verify", "internal", FAIL, f"verifying broke off: {type(error).__name__}: {error}")
        verdict = Verdict({}, [problem])
    return verdict.moved(str(staging), str(recipe.export.output))


def write(sinks: Sequence[Sink], report: Report, threads: int = 0) -> None:
    """Read every chunk of rows once, solve it once, and hand it to every sink that stores it the same way."""
    work = list(_shared(sinks))
    total = sum(4 * group[0][1].size for group in work)
    workers = threads or len(os.sched_getaffinity(0))
    pending: set[Future[int]] = set()
    with report.progress("writing", total) as advance, ThreadPoolExecutor(workers) as pool:
        try:
            for group in work:
                for start, stop in group[0][1].chunks():
                    pending.add(pool.submit(_move, group, start, stop))
                    if len(pending) > 2 * workers:  # bounds what waits, not what runs
                        pending = _collect(pending, advance)
            while pending:
                pending = _collect(pending, advance)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


Group = list[tuple[Sink, LazyTensor]]


def _shared(sinks: Sequence[Sink]) -> Iterator[Group]:
    """Views of all sinks, those that read the very same rows together, in the first sink's order."""
    groups: dict[int, Group] = {}
    for sink in sinks:
        for view in sink.views():
            groups.setdefault(id(view.read_codes or view.read), []).append((sink, view))
    return iter(groups.values())


def _move(group: Group, start: int, stop: int) -> int:
    view = group[0][1]
    rows: QTensor | Any
    if view.read_codes is not None and view.grid is not None:
        rows = cast(QTensor, view.read_codes(start, stop))
    else:
        rows = view.rows(start, stop)
    for sink, stored in group:
        sink.put(stored.name, start, stop, rows)
    return 4 * (stop - start) * view.columns


def _collect(pending: set[Future[int]], advance: Advance) -> set[Future[int]]:
    done, waiting = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return waiting


def _finish(
    planned: ContainerPlan,
    folder: Path,
    source: dict[str, Any],
    recipe: Mapping[str, Any],
    verdict: Verdict | None,
) -> None:
    """Write the card and the manifest of one container's folder."""
    tensors, totals = tensor_rows(planned), totals_of(planned)
    told = quick.sentence(verdict)
    card.write(folder, planned.checkpoint, planned.options, planned.container, tensors, totals, told)
    details = {**recipe, "scheme": planned.label}
    if planned.budget:
        details["budget"] = planned.budget
    if planned.notes:
        details["notes"] = list(planned.notes)
    verification = quick.summary(verdict)
    name = planned.options.name
    manifest.write(folder, source, details, planned.container, name, tensors, totals, verification)


def _fitted(recipe: Recipe) -> list[Path]:
    """The user's texts that some step fits weights to; a later `verify` must not judge by them."""
    steps = [step for step in (*recipe.passes, recipe.step) if not isinstance(step, Gate)]
    found = [getattr(step, name, None) for step in steps for name in ("calibration", "text")]
    return list(dict.fromkeys(path for path in found if isinstance(path, Path)))


def _artifact(planned: ContainerPlan, staging: Path, output: Path, verdict: Verdict | None) -> Artifact:
    folder = staging / planned.container
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    final = output / planned.container
    return Artifact(
        planned.container,
        planned.label,
        final,
        tuple(final / path for path in files),
        tuple(tensor_rows(planned)),
        totals_of(planned),
        verdict,
    )
