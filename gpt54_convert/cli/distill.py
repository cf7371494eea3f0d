"""`gpt54-convert distill`: a student's first weights from its teacher's, and its training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt54_convert.cli._job import do_recipe
from gpt54_convert.cli._options import build, options_of, output_options, resolve_model
from gpt54_convert.cli._terminal import TerminalReport, print_json, print_table
from gpt54_convert.distill.options import DistillInit, DistillTrain, MapOptions
from gpt54_convert.recipe import Convert, Export

if TYPE_CHECKING:
    from gpt54_convert.core.checkpoint import Checkpoint
    from gpt54_convert.distill.mapping import Map

_TEACHER = click.option(
    "--teacher", type=click.Path(path_type=Path), metavar="MODEL", help="Default: the embedded model."
)


@click.group("distill")
def command() -> None:
    """Make a small student out of a large teacher: map its weights, apply the map, train it."""


@command.command("map")
@_TEACHER
@options_of(MapOptions)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("map.toml"), show_default=True)
@output_options
def map_(
    teacher: Path | None, output: Path, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Write a map: for every weight of the student, which of the teacher's it is made of.

    The map is a text file to be read, compared and edited; `distill init` applies it.  Examples: `distill map
    --tier nano`, `distill map --teacher bert --student distilbert/config.json --layers even`.
    """
    from gpt54_convert import loaders
    from gpt54_convert.cli.pipe import write_new
    from gpt54_convert.core.passes import Context
    from gpt54_convert.distill.mapping import dumps
    from gpt54_convert.distill.propose import propose

    options, report = build(MapOptions, values), TerminalReport(quiet, verbose)
    source = loaders.load(resolve_model(teacher))
    plan = propose(source, options, Context(report, output.parent, source=source), teacher)
    write_new(output, dumps(plan), "-o")
    _show(source, plan, as_json, verbose, quiet)
    report.note(f"the map is in {output}; `gpt54-convert distill init --map {output}` applies it")


@command.command("show")
@click.argument("map_file", metavar="MAP", type=click.Path(path_type=Path))
@output_options
def show(map_file: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what MAP means, tensor by tensor (with -v; without it, one line for all layers of a role)."""
    from gpt54_convert.distill.mapping import read

    plan = read(map_file)
    _show(_teacher(plan, None), plan, as_json, verbose, quiet)


@command.command("init")
@options_of(DistillInit)
@click.option("--teacher", type=click.Path(path_type=Path), metavar="MODEL", help="Default: the map's own.")
@options_of(Convert, Export)
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; write nothing.")
@output_options
def init(
    teacher: Path | None, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Write the student that a map describes: a safetensors folder, unless --to names another container.

    Weights stream from the teacher's files.  Example: `distill init --map map.toml -o student`.
    """
    from gpt54_convert.distill.mapping import read
    from gpt54_convert.recipe import Recipe

    step = build(DistillInit, values)
    if step.map is None:
        raise click.UsageError("--map FILE is needed; `distill map` writes one")
    source = resolve_model(teacher or read(step.map).teacher)
    export = build(Export, values)
    export = dataclasses.replace(export, to=export.to or ("safetensors",))
    recipe = Recipe(source, build(Convert, values), export, (step,))
    do_recipe(recipe, dry_run, as_json, TerminalReport(quiet, verbose))


@command.command("train")
@click.option(
    "--student", required=True, type=click.Path(path_type=Path), metavar="MODEL", help="The model to train."
)
@options_of(DistillTrain, Convert, Export)
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; train and write nothing.")
@output_options
def train(student: Path, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
    """Train the student beside its teacher (by default the embedded model); writes a safetensors folder.

    Interrupted, the same command goes on exactly where it was saved last.  For several processes or
    machines: `accelerate launch -m gpt54_convert distill train …`.  Example: `distill train --teacher big
    --student student/safetensors --text book.txt -o trained`.
    """
    from gpt54_convert.recipe import Recipe

    step = build(DistillTrain, {**values, "teacher": resolve_model(values["teacher"])})
    export = build(Export, values)
    export = dataclasses.replace(export, to=export.to or ("safetensors",))
    recipe = Recipe(student, build(Convert, values), export, (step,))
    do_recipe(recipe, dry_run, as_json, TerminalReport(quiet, verbose))


def _teacher(plan: Map, named: Path | None) -> Checkpoint:
    from gpt54_convert import loaders

    return loaders.load(resolve_model(named or plan.teacher))


def _show(teacher: Checkpoint, plan: Map, as_json: bool, verbose: bool, quiet: bool) -> None:
    from gpt54_convert.distill.show import lines, rows

    if as_json:
        print_json({"schema": "gpt54-convert/map-rows/1", "tensors": rows(teacher, plan)})
    elif not quiet:
        header = ("tensor" if verbose else "role", "shape", "rows", "columns", "student←teacher")
        print_table("", header, lines(rows(teacher, plan), verbose))
