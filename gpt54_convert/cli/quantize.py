"""`gpt54-convert quantize`: weights to few bits, in every container that can hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.cli._job import do
from gpt54_convert.cli._options import build, given, model_argument, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport
from gpt54_convert.errors import UsageError
from gpt54_convert.recipe import Export, Quantize


@click.command("quantize")
@model_argument
@options_of(Quantize, Export)
@click.option(
    "--smooth",
    type=float,
    metavar="A",
    help="For w8a8: move part of the activation range into the weights first, say 0.5 (runs torch).",
)
@click.option(
    "--awq",
    is_flag=True,
    help="First scale up weights that meet large activations (AWQ), as these grids want it (runs torch).",
)
@click.option(
    "--rotate",
    is_flag=True,
    help="First rotate hidden states and values, folded into the weights, so that outliers spread.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; write nothing.")
@output_options
def command(
    model: Path | None,
    smooth: float | None,
    awq: bool,
    rotate: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Quantize MODEL (a HF folder, .safetensors, .gguf, .bin); without MODEL, the embedded one.

    Examples: `quantize --bits 4`, `quantize my-llama --scheme q4_k_m --to gguf -o out`.
    """
    report = TerminalReport(quiet, verbose)
    step = build(Quantize, values)
    passes = (*_rotation(rotate), *_scaling(step, smooth, awq, given(Calibration, values)))
    do(step, build(Export, values), model, dry_run, as_json, report, passes)


def _rotation(wanted: bool) -> tuple[Any, ...]:
    if not wanted:
        return ()
    from gpt54_convert.transforms.rotate import Rotate

    return (Rotate(),)


def _scaling(step: Quantize, smooth: float | None, awq: bool, text: dict[str, Any]) -> tuple[Any, ...]:
    """Factors that move between weights; `text` are the options of calibration that the user gave."""
    if awq and smooth is not None:
        raise UsageError("--awq and --smooth choose the same factors, each in its own way; give one of them")
    if awq:
        from gpt54_convert.transforms.awq import Awq

        return (Awq(step.schemes[0], **text),)
    if smooth is not None:
        from gpt54_convert.transforms.smooth import Smooth

        return (Smooth(smooth, **text),)
    return ()
