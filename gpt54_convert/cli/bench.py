"""`gpt54-convert bench`: load time, speed and memory of artifacts, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._options import build, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport, print_json, print_table, size_text
from gpt54_convert.sessions._options import Load


@click.command("bench")
@click.argument("artifacts", type=click.Path(path_type=Path), nargs=-1, required=True)
@options_of(Load)
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds (medians).")
@output_options
def command(
    artifacts: tuple[Path, ...], repeat: int, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Measure ARTIFACTS in their own runtimes: load time, prompt and decode speed, peak memory.

    Every run is a process of its own, and the artifacts take turns, so that a busy moment hits all of them.
    Example: `bench dist/gguf dist/safetensors dist/onnx`.
    """
    load = build(Load, values)
    report = TerminalReport(quiet, verbose)
    from gpt54_convert.sessions import _measure
    from gpt54_convert.verify.artifact import locate, size_bytes

    subjects = [locate(path) for path in artifacts]
    runs: dict[Path, list[dict[str, Any]]] = {path: [] for path in artifacts}
    with report.progress("measuring", repeat * len(runs)) as advance:
        for _ in range(repeat):
            for path, found in runs.items():
                found.append(_measure.in_process_of_its_own(path, load))
                advance(1)
    rows = [
        {
            "artifact": str(path),
            "container": subject.container,
            "size_bytes": size_bytes(subject),
            **_measure.median(runs[path]),
        }
        for path, subject in zip(artifacts, subjects, strict=True)
    ]
    if as_json:
        print_json({"schema": "gpt54-convert/bench/1", "repeat": repeat, "artifacts": rows})
    elif not quiet:
        _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    header = ("artifact", "runtime", "size", "load, s", "prompt, tokens/s", "decode, tokens/s", "peak memory")
    cells = [
        (
            row["artifact"],
            row["runtime"],
            size_text(row["size_bytes"]),
            f"{row['load_s']:.2f}",
            f"{row['prompt_tokens_per_s']:.1f}",
            f"{row['decode_tokens_per_s']:.1f}" if "decode_tokens_per_s" in row else "–",
            size_text(row["peak_memory_bytes"]),
        )
        for row in rows
    ]
    print_table("", header, cells, numbers=5)
