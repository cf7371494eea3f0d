"""`gpt54-convert verify`: does an artifact still behave like its model?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._options import build, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport, print_json
from gpt54_convert.verify.options import VerifyOptions

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="The model it was made from. Default: the one that the artifact's manifest records.",
)
@options_of(VerifyOptions)
@click.option("--junit", type=_FILE, metavar="FILE", help="Write the checks as JUnit XML.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write a summary for a CI page.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page with plots, in one file.")
@output_options
def command(
    artifact: Path, against: Path | None, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Run ARTIFACT in its own runtime beside the float model, and judge the difference.

    Exits with 0 if every gate passed, 3 if one failed, 4 if something could not be measured, 1 if a file
    cannot be read.  Examples: `verify dist/gguf`, `verify model.gguf --against my-llama --gate
    'kl_mean<=0.05'`.
    """
    from gpt54_convert.verify import verify
    from gpt54_convert.verify.reports import write

    report = TerminalReport(quiet, verbose)
    files = {kind: values.pop(kind) for kind in ("junit", "markdown", "html")}
    verdict = verify(artifact, against, build(VerifyOptions, values), report)
    if as_json:
        print_json(verdict.to_dict())
    elif not quiet:
        from gpt54_convert.cli._verdict import show

        show(verdict, verbose)
    for kind, path in files.items():  # last: the verdict is known whether or not they can be written
        if path is not None:
            write(kind, verdict, path)
    sys.exit(verdict.exit_code)
