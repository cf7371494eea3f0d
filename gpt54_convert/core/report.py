"""How long work speaks to whoever watches: progress and remarks, without knowing a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Report:
    """Says nothing; the command line's own report draws bars and prints remarks."""

    @contextmanager
    def progress(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """A piece of work of known size; the function given is called with the bytes of each step."""
        yield lambda done: None

    def note(self, text: str) -> None:
        """Something the user should know: a fallback, an assumption, a container that was skipped."""

    def detail(self, text: str) -> None:
        """Something for those who asked to hear more."""
