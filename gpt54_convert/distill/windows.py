"""Text as one long row of token ids on disk, and the windows of it that each step sees.

Which windows a step sees follows from the seed and its number alone, so that an interrupted training goes on
exactly, and several processes together see what one would.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import data
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Batch, Document, stack

PREFIX = 96  # tokens that an encoder-decoder's encoder reads
_CHUNK = 1 << 20  # characters
Ids = NDArray[np.uint32]


def chunks(files: Sequence[Path], split: str) -> Iterator[str]:
    """The text of files, or of one of the package's own splits, in pieces that end where a line does."""
    if not files:
        yield from _pieces(iter([data.text(split)]))
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                yield from _pieces(iter(partial(file.read, _CHUNK), ""))
        except (OSError, UnicodeDecodeError) as error:
            reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise InputError(f"{path}: {reason}") from error


def _pieces(parts: Iterable[str]) -> Iterator[str]:
    held = ""
    for part in parts:
        held += part
        end = held.rfind("\n") + 1
        if end and len(held) >= _CHUNK:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def spill(text: Iterator[str], tokenize: Any, path: Path) -> Ids:
    """The token ids of a text, written to `path` once and mapped from there."""
    if not path.exists():
        temporary = path.with_suffix(".partial")
        with open(temporary, "wb") as file:
            for piece in text:
                ids = tokenize.encode(piece, add_special_tokens=False).ids
                file.write(np.array(ids, "<u4").tobytes())
        os.replace(temporary, path)
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint32)
    return np.memmap(path, "<u4", "r")


@dataclass(frozen=True)
class Windows:
    """Windows of a row of ids, each of `context` targets.

    kind: decoder, encoder or encoder-decoder.  before, after: what the tokenizer puts around a text.
    start: the decoder's first token.  shifts: whether each pass over the text begins elsewhere.
    """

    ids: Ids
    context: int
    kind: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    start: int = 0
    seed: int = 0
    shifts: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(
                f"the text has {len(self.ids)} tokens, too few for one window of {self.length}; give more "
                "--text, or a smaller --context"
            )

    @property
    def length(self) -> int:
        """Tokens of text in one window."""
        return self.context + (PREFIX if self.kind == "encoder-decoder" else 1)

    @property
    def count(self) -> int:
        """Windows of one pass."""
        return max(0, (len(self.ids) - self.length) // self.context + 1)

    def of_step(self, step: int, size: int) -> list[int]:
        """The numbers of the windows of a step; `number // count` is the pass."""
        found = []
        for place in range(step * size, (step + 1) * size):
            turn, index = divmod(place, self.count)
            found.append(turn * self.count + int(_order(self.seed, turn, self.count)[index]))
        return found

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Windows as a batch, all of one length."""
        return stack([self._document(number) for number in numbers], 0)

    def _document(self, number: int) -> Document:
        turn, index = divmod(number, self.count)
        shift = 0
        if self.shifts and turn:
            shift = int(np.random.default_rng([self.seed, turn, 1]).integers(self.context))
        at = min(shift + index * self.context, len(self.ids) - self.length)
        ids = self.ids[at : at + self.length].astype(np.int64)
        if self.kind == "encoder-decoder":
            targets = ids[PREFIX:]
            return Document(np.concatenate([[self.start], targets[:-1]]), targets, ids[:PREFIX])
        if self.kind == "encoder":
            body = ids[: self.context - len(self.before) - len(self.after)]
            return Document(np.concatenate([self.before, body, self.after]).astype(np.int64), ids[:0])
        stream = np.concatenate([np.array(self.before, np.int64), ids])[: self.context + 1]
        return Document(stream[:-1], stream[1:])


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, turn]).permutation(count)
