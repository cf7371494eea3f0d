"""Progress bars, remarks and tables; rich is imported only when something is drawn."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from gpt54_convert.core.report import Advance, Report

_QUICK_S = 1.0  # work shorter than this shows no bar


class TerminalReport(Report):
    """Speaks on stderr; bars only on a terminal, and gone when done."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose

    @contextmanager
    def progress(self, title: str, total_bytes: int) -> Iterator[Advance]:
        if self.quiet or not sys.stderr.isatty():
            yield lambda done: None
            return
        bar = _LateBar(title, total_bytes)
        try:
            yield bar.advance
        finally:
            bar.stop()

    def note(self, text: str) -> None:
        if not self.quiet:
            click.echo(f"Note: {text}", err=True)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            click.echo(text, err=True)


class _LateBar:
    """A rich progress bar that appears only once the work has lasted a while."""

    def __init__(self, title: str, total_bytes: int) -> None:
        self.title, self.total, self.done = title, total_bytes, 0
        self.started = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def advance(self, done: int) -> None:
        self.done += done
        if self.bar is None and time.monotonic() - self.started > _QUICK_S:
            self._show()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        title = TextColumn("{task.description}", markup=False)
        columns = (title, BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(self.title, total=self.total)
        self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=1))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> None:
    """A table on stdout; the last `numbers` columns are right-aligned.  Plain where it is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        right = index >= len(header) - numbers
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)  # "[torch]" is text here


def size_text(size_bytes: float) -> str:
    """Bytes as people read them: 14.7 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return ""
