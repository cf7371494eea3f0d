"""Command-line options made from the dataclasses of a recipe, and the few that every command shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def options_of(*classes: type[Any]) -> Callable[[Decorated], Decorated]:
    """One option for every field of the dataclasses, in their order."""

    def decorate(function: Decorated) -> Decorated:
        for kind in reversed(classes):
            for field in reversed(_own_first(kind)):
                function = _option(field)(function)
        return function

    return decorate


def _own_first(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a class, then those that it inherits."""
    return sorted(dataclasses.fields(kind), key=lambda field: field.name not in kind.__annotations__)


def build(kind: type[Any], values: dict[str, Any]) -> Any:
    """An instance of a dataclass from the options that belong to it."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def given(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those options of a dataclass that stand on the command line."""
    source = click.get_current_context().get_parameter_source
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: values[name] for name in names if source(name) is ParameterSource.COMMANDLINE}


def _option(field: dataclasses.Field[Any]) -> Callable[[Decorated], Decorated]:
    extra = field.metadata
    flags = (*extra.get("flags", ()), f"--{field.name.replace('_', '-')}")
    if field.default is True:
        switch = f"{flags[-1]}/--no-{flags[-1].removeprefix('--')}"
        return click.option(switch, field.name, default=True, help=extra["help"], show_default=True)
    if isinstance(field.default, bool):
        return click.option(*flags, field.name, is_flag=True, help=extra["help"])
    kind: Any = str
    if "choices" in extra:
        kind = _Choice([str(choice) for choice in extra["choices"]], isinstance(extra["choices"][0], int))
    elif isinstance(field.default, Path) or extra.get("is_path"):
        kind = click.Path(path_type=Path)
    elif isinstance(field.default, int):
        kind = click.IntRange(min=0)
    elif "minimum" in extra:
        kind = click.IntRange(min=extra["minimum"])
    elif "number" in extra or isinstance(field.default, float):
        kind = float
    several = isinstance(field.default, tuple)
    shown = field.default if field.default not in (None, (), 0) else None
    return click.option(
        *flags,
        field.name,
        type=kind,
        default=None if several else field.default,
        multiple=several,
        help=extra["help"],
        metavar=extra.get("metavar"),
        show_default=str(shown) if shown is not None else False,
        shell_complete=_names(extra["listed"]) if "listed" in extra else None,
    )


def _names(what: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes the names of a list; of containers, those that can be written."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        from gpt54_convert.cli.list_ import LISTS

        return [row[0] for row in LISTS[what]()[1] if row[0].startswith(begun) and row[1] != "read"]

    return complete


class _Choice(click.Choice[str]):
    """A choice whose values may be numbers."""

    def __init__(self, choices: list[str], numbers: bool) -> None:
        super().__init__(choices)
        self.numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None:
            return None
        found = super().convert(str(value), param, ctx)
        return int(found) if self.numbers else found


def model_argument(function: Decorated) -> Decorated:
    """MODEL: a path; left out, the embedded model."""
    return click.argument("model", required=False, type=click.Path(path_type=Path))(function)


def output_options(function: Decorated) -> Decorated:
    """--json, -q, -v: what every command that prints takes."""
    function = click.option("-v", "--verbose", is_flag=True, help="Say more, on stderr.")(function)
    function = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")(function)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def resolve_model(model: Path | None) -> Path:
    """The user's path, or that of the embedded model."""
    if model is not None:
        return model
    from gpt54_convert import data

    return data.model_path()
