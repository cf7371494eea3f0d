"""Which indices of the teacher each index of the student is made of, as one short line of text.

0-31, 40, 50       picks: 34 indices, each one of the teacher's
0-254:2            every second one
0-3+4-7, 8+9+10    means: of 0 and 4, of 1 and 5, …, and of 8, 9 and 10
0-2047, pad*64     64 more that the teacher has none for
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError

Indices = NDArray[np.intp]
NONE = -1
_REGULAR = 6  # indices at equal distances that are written as a range with a step
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,6}))?)?")
_PAD = re.compile(r"pad(?:\*(\d{1,6}))?")


@dataclass(frozen=True)
class Choice:
    """members [count, most]: the teacher's indices behind each of the student's, filled up with NONE (-1)."""

    members: Indices

    def __len__(self) -> int:
        return len(self.members)

    @property
    def is_pick(self) -> bool:
        """Whether each index is exactly one of the teacher's."""
        return self.members.shape[1] == 1 and bool((self.members != NONE).all())

    @property
    def highest(self) -> int:
        """The largest index of the teacher that is named; -1 where none is."""
        return int(self.members.max()) if self.members.size else NONE

    def is_all_of(self, length: int) -> bool:
        """Whether it is the whole of an axis of that length, in order."""
        return self.is_pick and np.array_equal(self.members[:, 0], np.arange(length))

    def times(self, inner: Choice, length: int) -> Choice:
        """The choice of an axis whose length is a product; `inner` chooses from `length`, varying fastest."""
        left, right = self.members[:, None, :, None], inner.members[None, :, None, :]
        both = np.where((left == NONE) | (right == NONE), NONE, left * length + right)
        found = both.reshape(len(self) * len(inner), -1)
        order = np.argsort(found == NONE, axis=1, kind="stable")  # what is there first
        found = np.take_along_axis(found, order, 1)
        most = max(1, int((found != NONE).sum(1).max(initial=0)))
        return Choice(found[:, :most])

    def __str__(self) -> str:
        parts, at = [], 0
        while at < len(self):
            stop, step = self._run(at)
            first, last = self.members[at], self.members[stop - 1]
            names = [(int(a), int(b)) for a, b in zip(first, last, strict=True) if a != NONE]
            if not names:
                parts.append("pad" if stop - at == 1 else f"pad*{stop - at}")
            else:
                parts.append("+".join(_range_text(a, b, step) for a, b in names))
            at = stop
        return ", ".join(parts)

    def _run(self, at: int) -> tuple[int, int]:
        """Where a run of equal steps that starts at `at` ends, and its step; single ones have step 1."""
        rows, absent = self.members, self.members == NONE
        if absent[at].all():
            stop = at + 1
            while stop < len(self) and absent[stop].all():
                stop += 1
            return stop, 1
        stop, step = at + 1, None
        while stop < len(self) and np.array_equal(absent[stop], absent[at]):
            steps = (rows[stop] - rows[stop - 1])[~absent[at]]
            if steps[0] < 1 or not (steps == (steps[0] if step is None else step)).all():
                break
            step, stop = int(steps[0]), stop + 1
        if step is not None and step > 1 and stop - at < _REGULAR:  # an accident among picks
            return at + 1, 1
        return stop, step or 1


def _range_text(first: int, last: int, step: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}" + (f":{step}" if step > 1 else "")


def whole(length: int) -> Choice:
    """All of an axis, in order."""
    return picks(np.arange(length))


def picks(indices: Indices) -> Choice:
    """Each index one of the teacher's."""
    return Choice(np.asarray(indices, np.intp).reshape(-1, 1))


def means(groups: list[list[int]]) -> Choice:
    """Each index the mean of some of the teacher's."""
    members = np.full((len(groups), max(map(len, groups))), NONE, np.intp)
    for row, group in zip(members, groups, strict=True):
        row[: len(group)] = group
    return Choice(members)


def parse(text: str, where: str) -> Choice:
    """The choice that a line of text means.  Raises InputError, naming `where`, for anything else."""
    groups: list[list[int]] = []
    for part in re.sub(r"\s+", "", text).strip(",").split(","):
        padding = _PAD.fullmatch(part)
        if padding:
            groups += [[]] * int(padding[1] or 1)
            continue
        ranges = [_range(piece, where) for piece in part.split("+")]
        if len({len(each) for each in ranges}) != 1:
            raise InputError(f"{where}: {part!r} adds ranges of different lengths; give them the same length")
        groups += [list(group) for group in zip(*ranges, strict=True)]
    return means([group or [NONE] for group in groups])


def _range(text: str, where: str) -> range:
    found = _RANGE.fullmatch(text)
    if not found:
        raise InputError(
            f"{where}: {text[:60]!r} is no index; write 5, 0-31, 0-30:2, 3+7 for a mean, or pad*64"
        )
    first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
    if last < first or step < 1:
        raise InputError(f"{where}: the range {text!r} is empty; write the smaller index first")
    return range(first, last + 1, step)
