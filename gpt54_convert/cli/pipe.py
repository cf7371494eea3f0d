"""`gpt54-convert pipe`: a recipe written as one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._job import do_recipe
from gpt54_convert.cli._options import build, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport
from gpt54_convert.errors import UsageError

Part = tuple[str, Any]


def _part(name: str, kind: type[Any], help_text: str = "") -> click.Command:
    """A word of the line that makes an instance of a dataclass of options."""

    def make(**values: Any) -> Part:
        return name, build(kind, values)

    summary = help_text or (kind.__doc__ or "").strip()
    return click.command(name, help=summary)(options_of(kind)(make))


@click.command("load")
@click.argument("model", type=click.Path(path_type=Path))
def _load(model: Path) -> Part:
    """The checkpoint to begin with; left out, the embedded model."""
    return "load", model


class _Words(click.Group):
    """Every pass, and what every line begins and ends with; each made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from gpt54_convert.recipe_file import PASSES, STEPS

        return ["load", *PASSES, *STEPS, "export", "verify"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from gpt54_convert import recipe_file
        from gpt54_convert.recipe import Export
        from gpt54_convert.verify.options import VerifyOptions

        if cmd_name == "load":
            return _load
        if cmd_name == "export":
            return _part("export", Export, "Where artifacts go, and in which containers.")
        if cmd_name == "verify":
            return _part("verify", VerifyOptions, "Verify every artifact thoroughly, by these gates.")
        if cmd_name in recipe_file.STEPS:
            return _part(cmd_name, recipe_file.STEPS[cmd_name])
        if cmd_name in recipe_file.PASSES:
            return _part(cmd_name, recipe_file.pass_class(cmd_name))
        return None


@click.group("pipe", cls=_Words, chain=True, subcommand_metavar="WORD [OPTIONS] [WORD [OPTIONS]]…")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Only write the recipe.")
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; write nothing.")
@output_options
def command(**_: Any) -> None:
    """A whole job on one line: load, passes in their order, quantize or convert, export, verify.

    Options of `pipe` itself come before the first word.  Example: `pipe load my-llama prune --layers 12
    gate --demand 'perplexity_ratio<=2' quantize --bits 4 export --to gguf verify`.
    """


@command.result_callback()
def _run(
    parts: Sequence[Part],
    save: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    recipe = _recipe(parts)
    report = TerminalReport(quiet, verbose)
    if save is not None:
        from gpt54_convert.recipe_file import dumps

        write_new(save, dumps(recipe))
        report.note(f"the recipe is in {save}; `gpt54-convert run {save}` does it")
        return
    do_recipe(recipe, dry_run, as_json, report)


def _recipe(parts: Sequence[Part]) -> Any:
    from gpt54_convert import data, recipe_file
    from gpt54_convert.recipe import Convert, Export, Recipe

    found: dict[str, Any] = {}
    passes = []
    for name, value in parts:
        if name in recipe_file.PASSES:
            if "step" in found:
                raise UsageError(f"pipe: {name} comes after the weights were stored; put it before")
            passes.append(value)
            continue
        slot = "step" if name in recipe_file.STEPS else name
        if slot in found:
            raise UsageError(f"pipe: a second {name}; a line has one")
        if slot == "load" and (passes or found):
            raise UsageError("pipe: load comes first")
        found[slot] = value
    source = found.get("load") or data.model_path()
    step, export = found.get("step") or Convert(), found.get("export") or Export()
    return Recipe(source, step, export, tuple(passes), found.get("verify"))


def write_new(path: Path, text: str, option: str = "--save") -> None:
    """Write a text file that must not exist yet; `option` is the one that names another."""
    from gpt54_convert.core.workspace import as_output_error
    from gpt54_convert.errors import OutputError

    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise OutputError(f"{path} exists; name another file with {option}") from error
    except OSError as error:
        raise as_output_error(error, path) from error
