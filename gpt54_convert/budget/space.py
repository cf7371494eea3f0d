"""What one container offers: the grids each tensor may take, and exact sizes of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.quantize.allocate import allocate
from gpt54_convert.quantize.assign import Assignment, Refusal, assign, place
from gpt54_convert.quantize.grids import FLOAT, Grid, grid
from gpt54_convert.quantize.schemes import SCHEMES, scheme

Assignments = Mapping[str, Assignment]
Grids = Mapping[str, Grid]
LossOf = Callable[[str, Grid], float]

LABEL = "mix"
# What a tensor may be stored on; each container takes those it can hold.
CANDIDATES = (
    *(
        "int2-g32",
        "int2-g32-asym",
        "q2_k",
        "q3_k",
        "int4-channel",
        "int4-g128",
        "iq4_xs",
        "mxfp4",
        "int4-g64",
        "q4_k",
        "iq4_nl",
    ),
    *("int4-g32", "int4-g128-asym", "int4-g32-asym", "q4_1", "q5_k", "int5-g32", "q5_1", "q6_k"),
    *("int8-channel", "int8-g128", "int8-g32", "float16"),
)
# The scheme that says which tensors are quantized at all; where its grid does not fit, another may.
_BASE = "int8"
_REPAIRS = 8  # headers change length with the names of grids: so often is the room for them corrected


@dataclass(frozen=True)
class Offer:
    """One container: what it cannot hold, and the bytes of its files for given grids.

    size_bytes: raises UnsupportedError for assignments that the container cannot hold together.
    fused: roles whose matrices of one layer must share a grid, because runtimes make one matrix of them.
    """

    container: str
    checkpoint: Checkpoint
    refuses: Refusal
    size_bytes: Callable[[Assignments, str], int]
    fused: Sequence[Sequence[str]] = ()


class Space:
    """The tensors of a model that are free to take one of several grids in a container, the others fixed.

    together: what other containers refuse that shall have the same codes; where a tensor has grids that all
        of them hold, it takes one of these.  pinned: grids that another container's plan has chosen already.
    Raises UnsupportedError where no tensor is free.
    """

    def __init__(
        self, offer: Offer, keep: Grids, together: Sequence[Refusal] = (), pinned: Grids | None = None
    ) -> None:
        self.offer, self.keep = offer, keep
        self._together, self._pinned = together, pinned or {}
        self._own: dict[str, tuple[Grid, ...]] = {}
        self._base = assign(offer.checkpoint, scheme(_BASE), keep, offer.refuses)
        found = {
            name: self._candidates(offer.checkpoint.tensors[name], here)
            for name, here in self._base.items()
            if here.reason != "--keep" and (here.grid.kind != FLOAT or here.reason.startswith(_BASE))
        }
        self.free = {name: grids for name, grids in found.items() if any(g.kind != FLOAT for g in grids)}
        if not self.free:
            raise UnsupportedError(f"{offer.container} can hold no weight of this model on a grid of its own")
        self._items = [(names, self._shared(names)) for names in self._fused()]
        self._costs = [
            np.array([sum(self._bytes(name, each) for name in names) for each in grids], np.int64)
            for names, grids in self._items
        ]
        self.smallest_bytes = self.size_bytes(self._extreme(min))

    def size_bytes(self, grids: Grids) -> int:
        """Exact bytes of the files with these grids."""
        return self.offer.size_bytes(self.assignments(grids), LABEL)

    def assignments(self, grids: Grids) -> dict[str, Assignment]:
        """The assignment of every tensor: the free ones as given, all others as they must be."""
        return {
            name: replace(here, grid=grids[name], reason="") if name in grids else here
            for name, here in self._base.items()
        }

    def best_of_size(self, loss: LossOf, limit: int) -> dict[str, Grid]:
        """The grids of least loss whose files take at most `limit` bytes.

        Raises UnsupportedError where even the smallest files are larger.
        """
        losses = self._losses(loss)
        room = self.smallest_bytes - sum(int(cost.min()) for cost in self._costs)
        for _ in range(_REPAIRS):
            found = allocate(self._costs, losses, limit - room)
            if found is None:
                break
            grids = self._named(found.options)
            excess = self.size_bytes(grids) - limit
            if excess <= 0:
                return grids
            room += excess
        raise UnsupportedError(self.too_small(limit))

    def smallest_of_loss(self, loss: LossOf, limit: float) -> dict[str, Grid]:
        """The grids of fewest bytes at a total loss of at most `limit`; the largest if none does."""
        scale = 1e12 / limit
        priced = [np.ceil(np.minimum(values * scale, 1e15)).astype(np.int64) for values in self._losses(loss)]
        found = allocate(priced, [cost.astype(np.float64) for cost in self._costs], 10**12)
        return self._extreme(max) if found is None else self._named(found.options)

    def too_small(self, limit: int) -> str:
        """Why a budget cannot be met, and what could."""
        count = self.offer.checkpoint.parameter_count
        return (
            f"{self.offer.container} cannot hold this model in {limit:,} bytes: the smallest files take "
            f"{self.smallest_bytes:,} (--target-bpw {rounded_up(8 * self.smallest_bytes / count)})"
        )

    def uniform(self) -> Iterator[tuple[str, dict[str, Assignment]]]:
        """Every named scheme and single grid that this container can hold, with its assignments."""
        seen: list[dict[str, Grid]] = []
        meant = [name for name, known in SCHEMES.items() if self.offer.container in known.containers]
        for name in (*meant, *CANDIDATES):
            chosen = scheme(name)
            if grid(chosen.default).kind == FLOAT:
                continue
            found = assign(self.offer.checkpoint, chosen, self.keep, self.offer.refuses)
            grids = {each: here.grid for each, here in found.items()}
            if any(grids[each].kind != FLOAT for each in self.free) and grids not in seen:
                seen.append(grids)
                yield name, found

    def _candidates(self, tensor: LazyTensor, here: Assignment) -> tuple[Grid, ...]:
        half = "bfloat16" if tensor.dtype == "bfloat16" and tensor.grid is None else "float16"
        every = (grid(half if name == "float16" else name) for name in CANDIDATES)

        def held(each: Grid, refuses: Refusal) -> bool:
            return each.fits(tensor.columns) and refuses(here.role, tensor, each) is None

        own = tuple(each for each in every if held(each, self.offer.refuses))
        self._own[tensor.name] = own
        pinned = self._pinned.get(tensor.name)
        if pinned in own:
            return (pinned,)
        shared = tuple(each for each in own if all(held(each, refuses) for refuses in self._together))
        return shared if any(each.kind != FLOAT for each in shared) else own

    def _bytes(self, name: str, each: Grid) -> int:
        tensor = self.offer.checkpoint.tensors[name]
        return tensor.row_count * each.row_bytes(tensor.columns)

    def _losses(self, loss: LossOf) -> list[NDArray[np.float64]]:
        return [
            np.array([sum(loss(name, each) for name in names) for each in grids])
            for names, grids in self._items
        ]

    def _extreme(self, which: Callable[..., int]) -> dict[str, Grid]:
        """The smallest or largest choice."""
        return self._named([which(range(len(cost)), key=lambda at: int(cost[at])) for cost in self._costs])

    def _named(self, options: Sequence[int]) -> dict[str, Grid]:
        return {
            name: grids[option]
            for (names, grids), option in zip(self._items, options, strict=True)
            for name in names
        }

    def _fused(self) -> list[tuple[str, ...]]:
        """The free tensors in the order of the model, those together that must share a grid."""
        items: dict[object, tuple[str, ...]] = {}
        for name in self.free:
            where = place(self.offer.checkpoint, name)
            role = where.role.removeprefix("enc.")
            family = next((i for i, roles in enumerate(self.offer.fused) if role in roles), None)
            key = name if family is None else (family, role == where.role, where.layer)
            items[key] = (*items.get(key, ()), name)
        return list(items.values())

    def _shared(self, names: Sequence[str]) -> tuple[Grid, ...]:
        """The grids that all of these may take; what is pinned gives way where it would leave none."""
        found = [each for each in self.free[names[0]] if all(each in self.free[name] for name in names)]
        return tuple(found or (each for each in self._own[names[0]] if self._all_hold(each, names)))

    def _all_hold(self, each: Grid, names: Sequence[str]) -> bool:
        return all(each in self._own[name] for name in names)


def rounded_up(value: float) -> str:
    """Three decimals, never less than the value."""
    return f"{np.ceil(value * 1000) / 1000:.3f}"
