"""`gpt54-convert list`: what this version knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from gpt54_convert.cli._terminal import print_json, print_table

Listing = tuple[Sequence[str], Sequence[Sequence[str]]]


def _architectures() -> Listing:
    from gpt54_convert import archs

    found = [archs.by_name(name) for name in archs.names()]
    rows = [(a.name, a.kind, ", ".join(a.model_types), a.gguf or "–") for a in found]
    return ("architecture", "kind", "model_type in config.json", "name in GGUF"), rows


def _grids() -> Listing:
    from gpt54_convert.quantize.grids import GRIDS, INT_GROUPS, grid

    rows: list[Sequence[str]] = [
        (g.name, g.kind, str(g.bits), f"{g.bpw():.4g}", str(g.block)) for g in GRIDS.values()
    ]
    for group in INT_GROUPS:
        g = grid(f"int4-g{group}")
        rows.append((f"int2…int8-g{group}[-asym]", g.kind, "2–8", f"bits + {16 / group:.4g}", str(group)))
    rows.append(("int2…int8-channel[-asym]", "int", "2–8", "bits + 16 / row", "1"))
    return ("grid", "kind", "code bits", "bits per weight", "rows divide by"), rows


def _schemes() -> Listing:
    from gpt54_convert.quantize.schemes import BITS, SCHEMES

    bits = {name: f"--bits {n}" for n, names in BITS.items() for name in names}
    rows = [(s.name, bits.get(s.name, ""), ", ".join(s.containers), s.description) for s in SCHEMES.values()]
    return ("scheme", "default of", "containers", "what it is"), rows


def _methods() -> Listing:
    from gpt54_convert.core import discover
    from gpt54_convert.quantize.encode import SOLVERS

    names = discover.names(SOLVERS)
    return ("method", "what it does"), [(name, discover.load(SOLVERS, name).DESCRIPTION) for name in names]


def _formats() -> Listing:
    from gpt54_convert import loaders
    from gpt54_convert.plan import containers, exporter

    rows = [(module.__name__.rpartition(".")[2], "read", module.DESCRIPTION) for module in loaders.loaders()]
    rows += [(name, "write", exporter(name).DESCRIPTION) for name in containers()]
    return ("format", "direction", "what it is"), rows


def _leaves(package: str, title: str) -> Callable[[], Listing]:
    """The files of a leaf folder with what each says of itself."""

    def rows() -> Listing:
        from gpt54_convert.core import discover

        found = discover.names(package)
        return (title, "what it does"), [(name, discover.load(package, name).DESCRIPTION) for name in found]

    return rows


LISTS: dict[str, Callable[[], Listing]] = {
    "architectures": _architectures,
    "grids": _grids,
    "schemes": _schemes,
    "methods": _methods,
    "formats": _formats,
    "layer-choices": _leaves("gpt54_convert.prune.layers", "layer choice"),
    "criteria": _leaves("gpt54_convert.prune.criteria", "criterion"),
    "importances": _leaves("gpt54_convert.prune.importance", "importance"),
}


@click.command("list")
@click.argument("what", type=click.Choice(list(LISTS)))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(what: str, as_json: bool) -> None:
    """List what this version knows of WHAT, by name."""
    header, rows = LISTS[what]()
    if as_json:
        entries: list[dict[str, Any]] = [dict(zip(header, row, strict=True)) for row in rows]
        print_json({"schema": "gpt54-convert/list/1", what: entries})
    else:
        print_table("", header, rows)
