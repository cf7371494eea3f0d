"""`gpt54-convert convert`: the same weights in another container or float type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._job import do
from gpt54_convert.cli._options import build, model_argument, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport
from gpt54_convert.recipe import Convert, Export


@click.command("convert")
@model_argument
@options_of(Convert, Export)
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; write nothing.")
@output_options
def command(
    model: Path | None, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Convert MODEL between containers as floats; without MODEL, the embedded one.

    Codes of a source that is already quantized pass on untouched where the container can hold them.
    Examples: `convert model.gguf --to safetensors`, `convert my-llama --to gguf --dtype bfloat16`.
    """
    report = TerminalReport(quiet, verbose)
    do(build(Convert, values), build(Export, values), model, dry_run, as_json, report)
