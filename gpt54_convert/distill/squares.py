"""What remains of an axis made to stand for all of it: least squares over what the teacher can write to it.

If only channels S of x stay, the best linear guess of all of x is A x_S with A = G[:, S] G[S, S]⁻¹, where
G = E[x xᵀ].  A matrix W that reads x then becomes W A.  G is taken from the weights alone: every matrix
that writes to the axis is given white noise, the embedding its own rows, each writer counts alike; for ffn
channels (up × gate) it is the product of both.  Between the axis and its reader stands a norm with gains g,
so that A becomes diag(g) A diag(g_S)⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.archs import Match
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.distill.choice import Choice
from gpt54_convert.distill.origin import Both
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.prune.evidence import writer
from gpt54_convert.prune.spaces import WIDTH, Space, module_of

LONGEST = 8192  # channels; G has their square
_RIDGE = 1e-7
Matrix = NDArray[np.float64]


class Squares:
    """The matrices A of one teacher, made when they are first asked for."""

    def __init__(self, both: Both) -> None:
        tensors = both.teacher.tensors
        self._tensors = tensors
        found = ((name, both.old.match(name)) for name in tensors)
        self._matches = {name: match for name, match in found if match is not None}
        self._names = {(m.weight.role, m.layer, m.is_bias): name for name, m in self._matches.items()}
        self._width_gram = lru_cache(self._width)

    def matrix(self, name: str, key: str, choice: Choice) -> Callable[[], NDArray[np.float32]]:
        """A [teacher's channels, student's channels] for the teacher's tensor `name`, which reads the axis.

        Raises UnsupportedError where the axis is too long, or not a mere pick.
        """
        length = self._tensors[name].shape[1]
        if not choice.is_pick or length > LONGEST:
            raise UnsupportedError(
                f"map: least squares over {key} needs an axis of at most {LONGEST} channels (here: {length}) "
                "of which some are picked"
            )
        match, kept = self._matches[name], choice.members[:, 0]

        @lru_cache
        def made() -> NDArray[np.float32]:
            wide = key.split("@", maxsplit=1)[0] == WIDTH
            gram = self._width_gram(_in_encoder(match)) if wide else self._ffn(match)
            guess = _guess(gram, kept)
            if wide:
                gain = self._gain(match, length)
                safe = np.where(np.abs(gain[kept]) < 1e-6 * np.abs(gain).max(), 1.0, gain[kept])
                guess = gain[:, None] * guess / safe
                guess[kept] = np.eye(len(kept))
            return guess.astype(np.float32)

        return made

    def _width(self, encoder: bool) -> Matrix:
        grams = []
        for name, match in self._matches.items():
            embeds = match.weight.role.startswith("embed")
            if writer(match, Space(WIDTH)) and (embeds or match.weight.role.startswith("enc.") == encoder):
                gram = _gram(self._tensors[name], columns=embeds)
                grams.append(gram / max(np.trace(gram), np.finfo(float).tiny))
        return np.asarray(np.mean(grams, 0))

    def _ffn(self, match: Match) -> Matrix:
        stem = match.weight.role.rpartition(".")[0]
        makers = [self._names.get((f"{stem}.{part}", match.layer, False)) for part in ("up", "gate")]
        return np.asarray(np.prod([_gram(self._tensors[name]) for name in makers if name], axis=0))

    def _gain(self, match: Match, length: int) -> Matrix:
        """The gains of the norm before a matrix; ones where there is none."""
        role = match.weight.role
        side = "enc." if role.startswith("enc.") else ""
        place: tuple[str, int | None, bool] = (f"{side}norm.{module_of(role)}", match.layer, False)
        if role == "head":
            place = ("norm.final", None, False)
        elif role in ("cross.k", "cross.v"):
            place = ("enc.norm.final", None, False)
        if place not in self._names:
            return np.ones(length)
        tensor = self._tensors[self._names[place]]
        shift = float(self._matches[tensor.name].weight.plus_one)
        return tensor.float_rows(0, length).reshape(-1).astype(np.float64) + shift


def _in_encoder(match: Match) -> bool:
    return match.weight.role.startswith("enc.") or match.weight.role in ("cross.k", "cross.v")


def _gram(tensor: LazyTensor, columns: bool = False) -> Matrix:
    """W Wᵀ, or of a table with `columns` its Wᵀ W; read in chunks."""
    if not columns:
        values = np.concatenate([tensor.float_rows(start, stop) for start, stop in tensor.chunks()])
        return np.asarray(values @ values.T, np.float64)
    total = np.zeros((tensor.columns, tensor.columns))
    for start, stop in tensor.chunks():
        values = tensor.float_rows(start, stop)
        total += values.T @ values
    return total


def _guess(gram: Matrix, kept: NDArray[np.intp]) -> Matrix:
    """The least-squares guess [all, kept] of all channels from those kept; the kept ones are themselves."""
    inner = gram[np.ix_(kept, kept)]
    ridge = _RIDGE * np.trace(inner) / len(kept)
    guess = np.linalg.solve(inner + ridge * np.eye(len(kept)), gram[kept]).T
    guess[kept] = np.eye(len(kept))
    return np.asarray(guess)
