"""Numeric grids: which values the elements of one tensor may take, and what they cost.

A grid says how a row of weights is stored: bits of a code, how many neighbours share a scale, and how that
scale is itself stored.  It knows nothing of files; `packing/` turns codes into a container's bytes.

Sources: ggml `ggml-common.h` for the block layouts of GGUF types; OCP Microscaling v1.0 for MXFP4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from gpt54_convert.errors import UsageError

FLOAT, INT, FLAT, SUPER = "float", "int", "flat", "super"


@dataclass(frozen=True)
class Grid:
    """The numeric format of one tensor.

    name: what the user types and every table prints.
    kind: `float` (no codes), `int` (integer codes, one float16 scale a group, any container),
        `flat` (a GGUF type with one level of scales), `super` (a GGUF type with superblocks).
    bits: bits of one code.
    group: elements of a row that share one scale; 0 is the whole row (per channel).
    symmetric: codes are centred on 2**(bits-1), no offset is stored.
    block: elements of one stored block; a row's length must divide by it (1: any length).
    block_bytes: bytes of one stored block, scales included (0: follows from the row length).
    """

    name: str
    kind: str
    bits: int
    group: int = 1
    symmetric: bool = True
    block: int = 1
    block_bytes: int = 0

    def fits(self, columns: int) -> bool:
        """True where a row of `columns` elements can be stored on this grid."""
        return columns > 0 and columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one stored row of `columns` elements, scales and offsets included."""
        if self.block_bytes:
            return columns // self.block * self.block_bytes
        if self.kind == FLOAT:
            return columns * self.bits // 8
        groups = columns // self.group if self.group else 1
        offset_bits = 0 if self.symmetric else self.bits
        return (columns * self.bits + groups * (16 + offset_bits) + 7) // 8

    def bpw(self, columns: int | None = None) -> float:
        """Bits per weight; for a per-channel grid the row length must be given to count the scale."""
        if self.block_bytes:
            return 8 * self.block_bytes / self.block
        return 8 * self.row_bytes(columns) / columns if columns else float(self.bits)


def _ggml(name: str, kind: str, bits: int, group: int, block: int, size: int, sym: bool) -> Grid:
    return Grid(name, kind, bits, group, sym, block, size)


_TABLE: tuple[Grid, ...] = (
    Grid("float32", FLOAT, 32),
    Grid("float16", FLOAT, 16),
    Grid("bfloat16", FLOAT, 16),
    _ggml("q4_0", FLAT, 4, 32, 32, 18, True),
    _ggml("q4_1", FLAT, 4, 32, 32, 20, False),
    _ggml("q5_0", FLAT, 5, 32, 32, 22, True),
    _ggml("q5_1", FLAT, 5, 32, 32, 24, False),
    _ggml("q8_0", FLAT, 8, 32, 32, 34, True),
    _ggml("iq4_nl", FLAT, 4, 32, 32, 18, True),
    _ggml("mxfp4", FLAT, 4, 32, 32, 17, True),
    _ggml("q2_k", SUPER, 2, 16, 256, 84, False),
    _ggml("q3_k", SUPER, 3, 16, 256, 110, True),
    _ggml("q4_k", SUPER, 4, 32, 256, 144, False),
    _ggml("q5_k", SUPER, 5, 32, 256, 176, False),
    _ggml("q6_k", SUPER, 6, 16, 256, 210, True),
    _ggml("iq4_xs", SUPER, 4, 32, 256, 136, True),
)
GRIDS: dict[str, Grid] = {grid.name: grid for grid in _TABLE}
ALIASES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
INT_GROUPS = (16, 32, 64, 128, 256)
_INT_NAME = re.compile(r"int([2-8])(?:-g(\d+)|-(channel))?(-asym)?")


@lru_cache
def grid(name: str) -> Grid:
    """The grid called `name`: a name of `GRIDS`, or `int{2..8}[-g{16..256}|-channel][-asym]`.

    Raises UsageError for anything else, naming what could have been meant.
    """
    key = name.lower()
    key = ALIASES.get(key, key)
    if key in GRIDS:
        return GRIDS[key]
    match = _INT_NAME.fullmatch(key)
    if match:
        bits, group = int(match[1]), 0 if match[3] else int(match[2] or 32)
        if group in (0, *INT_GROUPS):
            suffix = f"-g{group}" if group else "-channel"
            full = f"int{bits}{suffix}{match[4] or ''}"
            return Grid(full, INT, bits, group, not match[4], group or 1)
    raise UsageError(
        f"unknown grid {name!r}: use one of {', '.join(GRIDS)}, or int2…int8 with -g16…-g256 or "
        "-channel, and -asym (for example int4-g128)"
    )
