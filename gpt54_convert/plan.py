"""From a recipe and a checkpoint to what each container will hold, before anything is read or written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpt54_convert.calibrate import ranges
from gpt54_convert.calibrate.solution import Solution, Solutions
from gpt54_convert.core import discover
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import is_float
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.workspace import MANIFEST
from gpt54_convert.errors import ConvertError, UnsupportedError, UsageError
from gpt54_convert.exporters._sink import Exporter, Sink, SinkOptions
from gpt54_convert.quantize.assign import Assignment, assign, parse_keep, place
from gpt54_convert.quantize.encode import Solve, needs, on_grid, same_grid, solver
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import FLOAT, Grid, grid
from gpt54_convert.quantize.schemes import SCHEMES, Scheme, scheme
from gpt54_convert.quantize.statistics import Statistics
from gpt54_convert.recipe import Quantize, Recipe, parse_size

if TYPE_CHECKING:
    from gpt54_convert.budget.search import Search

EXPORTERS = "gpt54_convert.exporters"
_HELPERS = ("manifest", "card")


@dataclass(frozen=True)
class ContainerPlan:
    """One artifact to be: its container, the scheme, each tensor's grid, its exact size in bytes."""

    container: str
    label: str
    assignments: Mapping[str, Assignment]
    tallies: Mapping[str, ErrorTally]
    source_bytes: Mapping[str, int]
    checkpoint: Checkpoint
    options: SinkOptions
    size_bytes: int
    solutions: tuple[Solution, ...] = ()  # what a walk must find first
    losses: Mapping[str, float] = field(default_factory=dict)  # of tensors whose grid a budget chose
    budget: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what its sink has to say

    def sink(self, folder: Path) -> Sink:
        """The artifact laid out in `folder`."""
        return exporter(self.container).open_sink(self.checkpoint, folder, self.options)


@dataclass
class _Views:
    """Tensors on their grids, made once per (tensor, grid, walk), so that containers can share codes.

    A method that needs data finds its codes on walks, which are planned here and made later.
    """

    method: str
    statistics: Mapping[str, Statistics] | None = None
    solutions: Solutions = field(default_factory=Solutions)
    made: dict[tuple[str, str, str], tuple[LazyTensor, ErrorTally]] = field(default_factory=dict)

    def all(
        self, checkpoint: Checkpoint, assignments: Mapping[str, Assignment]
    ) -> dict[str, tuple[LazyTensor, ErrorTally]]:
        """Every tensor of one container on its grid."""
        solution = None
        if needs(self.method) != "nothing" and self.statistics is None:
            grids = {name: found.grid for name, found in assignments.items() if not _has(checkpoint, found)}
            solution = self.solutions.get(grids, {name: found.role for name, found in assignments.items()})
        return {
            name: self._get(checkpoint.tensors[name], found.grid, solution)
            for name, found in assignments.items()
        }

    def _get(
        self, tensor: LazyTensor, target: Grid, solution: Solution | None
    ) -> tuple[LazyTensor, ErrorTally]:
        key = (tensor.name, target.name, solution.key if solution else "")
        if key not in self.made:
            tally = ErrorTally()
            codes = solution.codes(tensor.name, target) if solution else None
            self.made[key] = (on_grid(tensor, target, self._solve(tensor.name), tally, codes), tally)
        return self.made[key]

    def _solve(self, name: str) -> Solve:
        """The solver of what no walk finds: by the file of statistics, or without data."""
        if needs(self.method) == "nothing":
            return solver(self.method)
        known = (self.statistics or {}).get(name)
        if known is None:
            return solver("search")
        solve = solver(self.method)
        return lambda weight, grid, _=None: solve(weight, grid, known)


def _has(checkpoint: Checkpoint, wanted: Assignment) -> bool:
    """Whether the source holds codes of this very grid, which pass on untouched."""
    return same_grid(checkpoint.tensors[wanted.name].grid, wanted.grid)


def containers() -> tuple[str, ...]:
    """The containers that this version can write."""
    return tuple(name for name in discover.names(EXPORTERS) if name not in _HELPERS)


def exporter(name: str) -> Exporter:
    """The exporter of one container.  Raises UsageError for one that this version cannot write."""
    if name not in containers():
        raise UsageError(f"unknown container {name!r}: --to takes {', '.join(containers())}")
    return cast(Exporter, discover.load(EXPORTERS, name))


def plan(recipe: Recipe, checkpoint: Checkpoint, report: Report) -> list[ContainerPlan]:
    """What each container of the recipe will hold.

    A container that was asked for by name and cannot be written raises; one that was merely implied is
    skipped with a note, unless none remains.
    """
    for note in checkpoint.notes:
        report.note(note)
    asked = tuple(dict.fromkeys(recipe.export.to))
    views = _views(recipe, checkpoint, report)
    plans: list[ContainerPlan] = []
    problems: list[tuple[str, ConvertError]] = []
    with ExitStack() as stack:
        search = _budget_search(recipe, report)
        if search is not None:
            stack.enter_context(search)
        for name in asked or containers():
            exporter(name)
            try:
                plans.append(_plan_one(name, recipe, checkpoint, views, search, report))
            except UnsupportedError as error:
                if asked:
                    raise
                problems.append((name, error))
    if not plans:
        raise problems[0][1] if len(problems) == 1 else UnsupportedError(_join(problems))
    for name, problem in problems:
        report.note(f"no {name} written: {problem}")
    return plans


def _views(recipe: Recipe, checkpoint: Checkpoint, report: Report) -> _Views:
    if not isinstance(recipe.step, Quantize):
        return _Views("rtn")
    if recipe.step.stats is None:
        return _Views(recipe.step.solver)
    from gpt54_convert.calibrate import imatrix_file

    statistics = imatrix_file.read(recipe.step.stats, checkpoint)
    if missing := imatrix_file.missing(statistics, checkpoint):
        report.note(f"--stats {recipe.step.stats} {missing}")
    return _Views(recipe.step.solver, statistics)


def _join(problems: list[tuple[str, ConvertError]]) -> str:
    return "no container can be written: " + "; ".join(f"{name}: {error}" for name, error in problems)


def _budget_search(recipe: Recipe, report: Report) -> Search | None:
    """The search of a recipe whose grids follow from a budget."""
    if not (isinstance(recipe.step, Quantize) and recipe.step.has_budget):
        return None
    from gpt54_convert.budget.search import Search

    return Search(recipe.step, recipe.export.threads, report)


def _plan_one(
    name: str, recipe: Recipe, checkpoint: Checkpoint, views: _Views, search: Search | None, report: Report
) -> ContainerPlan:
    wanted = recipe.step.schemes if search is None else ()
    chosen = _scheme_for(name, wanted) if wanted else None  # before libraries are imported in vain
    ranges.check(name, recipe.step, hasattr(exporter(name), "FIXED_RANGES"))
    refuses = partial(exporter(name).refuses, checkpoint=checkpoint)
    left_out = set(exporter(name).leaves_out(checkpoint))
    checkpoint = checkpoint.with_tensors({k: t for k, t in checkpoint.tensors.items() if k not in left_out})
    if search is not None:
        from gpt54_convert.budget.space import Offer

        def size_bytes(assignments: Mapping[str, Assignment], label: str) -> int:
            # Views of their own: nothing that is only tried shall be solved.
            return _laid_out(name, recipe, checkpoint, _Views("rtn"), assignments, label).size_bytes

        others = [other for other in dict.fromkeys(recipe.export.to) if other != name]
        together = [partial(exporter(other).refuses, checkpoint=checkpoint) for other in others]
        fused = [roles for each in (name, *others) for roles in getattr(exporter(each), "FUSED", ())]
        choice = search.choose(Offer(name, checkpoint, refuses, size_bytes, fused), together)
        found = _laid_out(name, recipe, checkpoint, views, choice.assignments, choice.label)
        found = replace(found, losses=choice.losses, budget=choice.facts)
    elif chosen is None:
        found = _laid_out(name, recipe, checkpoint, views, _as_source(checkpoint, name), "keep")
    else:
        keep = parse_keep(recipe.step.keep) if isinstance(recipe.step, Quantize) else {}
        assignments = assign(checkpoint, chosen, keep, refuses)
        _check_use(name, chosen, assignments)
        found = _laid_out(name, recipe, checkpoint, views, assignments, chosen.name)
    for note in [*_left_out_notes(name, left_out), *found.notes]:
        report.note(note)
    return found


def _laid_out(
    name: str,
    recipe: Recipe,
    checkpoint: Checkpoint,
    views: _Views,
    assignments: Mapping[str, Assignment],
    label: str,
) -> ContainerPlan:
    """The plan with these grids; refuses what the container cannot hold."""
    assignments = {key: _as_float(name, checkpoint.tensors[key], a) for key, a in assignments.items()}
    made = views.all(checkpoint, assignments)
    options = SinkOptions(
        name=recipe.export.name or model_name(checkpoint),
        label=label,
        pre=recipe.export.pre,
        shard_bytes=parse_size(recipe.export.shard_size) if recipe.export.shard_size else None,
        activations=_activations(label),
        ranges=ranges.unmeasured(recipe.step, assignments),
        layout=recipe.export.layout,
    )
    placed = checkpoint.with_tensors({key: tensor for key, (tensor, _) in made.items()})
    sink = exporter(name).open_sink(placed, Path(), options)
    return ContainerPlan(
        name,
        label,
        assignments,
        {key: tally for key, (_, tally) in made.items()},
        {key: tensor.source_bytes for key, tensor in checkpoint.tensors.items()},
        placed,
        options,
        sink.size_bytes,
        tuple(views.solutions.all.values()),
        notes=tuple(sink.notes),
    )


def _activations(label: str) -> str:
    """The grid whose inputs are rounded too, under a scheme that says so."""
    found = SCHEMES.get(label)
    return found.default if found and found.activations else ""


def _as_float(container: str, tensor: LazyTensor, found: Assignment) -> Assignment:
    """What stays float, in the float type that this container really stores it in."""
    if found.grid.kind != FLOAT or not is_float(tensor.dtype):
        return found
    return replace(found, grid=exporter(container).float_grid(found.role, tensor, found.grid))


def _left_out_notes(container: str, names: set[str]) -> list[str]:
    return [f"{container} has no place for {', '.join(sorted(names))}: left out"] if names else []


def _scheme_for(container: str, names: tuple[str, ...]) -> Scheme:
    for name in names:
        if container in scheme(name).containers:
            return scheme(name)
    homes = " and ".join(scheme(names[0]).containers)
    raise UnsupportedError(f"{container} cannot hold {' or '.join(names)} (that scheme is for {homes})")


def _as_source(checkpoint: Checkpoint, container: str) -> dict[str, Assignment]:
    """Every tensor as the source has it; codes that the container cannot hold become exact float32."""
    refuses = partial(exporter(container).refuses, checkpoint=checkpoint)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        role = place(checkpoint, name).role
        own = grid(tensor.grid or (tensor.dtype if tensor.dtype in ("float16", "bfloat16") else "float32"))
        problem = refuses(role, tensor, own) if own.kind != FLOAT else None
        reason = f"{own.name}: {problem}" if problem else ""
        found[name] = Assignment(name, role, grid("float32") if problem else own, reason)
    return found


def _check_use(container: str, chosen: Scheme, assignments: Mapping[str, Assignment]) -> None:
    """A quantizing scheme of which nothing is left in this container is not what the user asked for."""
    if grid(chosen.default).kind == FLOAT or any(a.grid.kind != FLOAT for a in assignments.values()):
        return
    reason = next((a.reason for a in assignments.values() if a.reason), "no matrix in this model")
    raise UnsupportedError(f"{container} cannot hold any weight of this model as {chosen.name} ({reason})")


def model_name(checkpoint: Checkpoint) -> str:
    """A name for the model: the source's own, else that of its folder or file less a grid's name."""
    own: Any = checkpoint.config.get("_name_or_path")
    path = checkpoint.source.path.absolute()
    if path.is_dir() and checkpoint.source.container == "gguf":
        path = checkpoint.source.files[0]
    if isinstance(own, str) and own.strip("./") and not own.startswith(("/", ".")):
        return own.rstrip("/").rsplit("/", 1)[-1]
    if path.parent.name == "snapshots":  # the Hugging Face cache: models--owner--name/snapshots/commit
        return path.parent.parent.name.rsplit("--", 1)[-1]
    if path.is_dir():
        return _name_in_manifest(path) or path.name
    return re.sub(r"[.-](I?Q\d\w*|MXFP4|B?F(16|32))(-00001-of-\d{5})?$", "", path.stem, flags=re.IGNORECASE)


def _name_in_manifest(folder: Path) -> str | None:
    """The model's name in an artifact of ours, whose folder is only called after its container."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    name = found.get("name") if isinstance(found, dict) else None
    return name if isinstance(name, str) and folder.name in containers() else None
