"""`gpt54-convert run`: a whole job from a recipe file."""

from __future__ import annotations

from pathlib import Path

import click

from gpt54_convert.cli._job import do_recipe
from gpt54_convert.cli._options import output_options
from gpt54_convert.cli._terminal import TerminalReport


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write here instead.")
@click.option("--overwrite", is_flag=True, help="Replace artifacts that an earlier run wrote.")
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; write nothing.")
@output_options
def command(
    recipe: Path,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Do everything that RECIPE, a TOML file, says: load, passes in turn, quantize or convert, export.

    Interrupted, the same command goes on behind the last finished stage.  `pipe … --save FILE` writes such a
    file; docs/recipes.md has the keys.
    """
    from dataclasses import replace

    from gpt54_convert import recipe_file

    found = recipe_file.read(recipe)
    export = replace(
        found.export, output=output or found.export.output, overwrite=overwrite or found.export.overwrite
    )
    do_recipe(replace(found, export=export), dry_run, as_json, TerminalReport(quiet, verbose))
