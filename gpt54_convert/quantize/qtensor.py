"""Codes and scales on a grid, free of any container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError
from gpt54_convert.quantize.grids import INT, SUPER, Grid

# ggml's non-linear 4-bit levels (ggml-common.h, kvalues_iq4nl) and FP4 E2M1's (OCP MX v1.0, table 5).
IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
E2M1_LEVELS = np.concatenate([_E2M1, 0 - _E2M1])  # code 8 is +0, as ggml reads it
FIELDS = ("codes", "scale", "offset", "super_scale", "super_offset")  # of a QTensor: its arrays


@dataclass(frozen=True)
class QTensor:
    """One quantized matrix (or some rows of it).

    codes [rows, columns] uint8: the level, counted from 0 (symmetric grids: 2**(bits-1) means zero).
    scale [rows, columns / group]: float16 for `int` and most `flat` grids; uint8 exponents (bias 127)
        for mxfp4; for `super` grids the sub-scale's own code (uint8; int8 for q6_k).
    offset [rows, columns / group] or None: the integer zero point (uint8) of asymmetric `int` grids;
        the float16 minimum, added, of q4_1 and q5_1; the sub-minimum's code (uint8) of q2_k, q4_k, q5_k.
    super_scale, super_offset [rows, columns / 256] float16 or None: a superblock's d and dmin.
    """

    grid: Grid
    codes: NDArray[np.uint8]
    scale: NDArray[np.generic]
    offset: NDArray[np.generic] | None = None
    super_scale: NDArray[np.float16] | None = None
    super_offset: NDArray[np.float16] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def take_rows(self, rows: NDArray[np.intp] | slice) -> QTensor:
        """Some rows, in the order given; groups never span rows, so nothing is recomputed."""
        return self.each(lambda part: part[rows])

    def each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> QTensor:
        """Every stored array changed alike."""
        parts = (getattr(self, name) for name in FIELDS)
        return QTensor(self.grid, *(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]

    def levels(self) -> NDArray[np.float32] | None:
        """The values of codes before scaling, where they are not evenly spaced."""
        return {"iq4_nl": IQ4_LEVELS, "iq4_xs": IQ4_LEVELS, "mxfp4": E2M1_LEVELS}.get(self.grid.name)

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and offset [rows, groups] such that codes * scale + offset are the values, up to rounding.

        Only for grids without `levels`.
        """
        scale, offset = self.scales()
        if self.grid.symmetric:
            return scale, scale * np.float32(-(1 << (self.grid.bits - 1)))
        if offset is None and self.offset is not None:
            offset = -scale * self.offset.astype(np.float32)
        return scale, np.zeros_like(scale) if offset is None else offset

    def dequantize(self) -> NDArray[np.float32]:
        """The values that the codes stand for, [rows, columns] float32."""
        rows, columns = self.codes.shape
        group = self.grid.group or columns
        levels = self.unscaled().reshape(rows, columns // group, group)
        scale, offset = self.scales()
        values = levels * scale[..., None]
        if offset is not None:
            values += offset[..., None]
        return values.reshape(rows, columns)

    def unscaled(self) -> NDArray[np.float32]:
        """What the codes stand for before scaling, [rows, columns]; an integer zero is taken off."""
        table = self.levels()
        if table is not None:
            return table[self.codes]
        levels = self.codes.astype(np.float32)
        if self.grid.symmetric:
            levels -= np.float32(1 << (self.grid.bits - 1))
        elif self.grid.kind == INT and self.offset is not None:
            rows, columns = levels.shape
            group = self.grid.group or columns
            grouped = levels.reshape(rows, -1, group)
            grouped -= self.offset.astype(np.float32)[..., None]
        return levels

    def scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Effective scale and added offset of each group, [rows, groups] float32."""
        if self.grid.kind == SUPER:
            return self._super_scales()
        if self.grid.name == "mxfp4":
            return np.exp2(self.scale.astype(np.float32) - 127).astype(np.float32), None
        offset = self.offset if self.grid.kind != INT else None
        return self.scale.astype(np.float32), None if offset is None else offset.astype(np.float32)

    def _super_scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        if self.super_scale is None:
            raise InternalError(f"a {self.grid.name} tensor needs super_scale")
        per_super = self.grid.block // self.grid.group
        scale = self.scale.astype(np.float32)
        if self.grid.name in ("q3_k", "iq4_xs"):
            scale -= 32
        scale *= np.repeat(self.super_scale.astype(np.float32), per_super, axis=1)
        if self.offset is None or self.super_offset is None:
            return scale, None
        minimum = np.repeat(self.super_offset.astype(np.float32), per_super, axis=1)
        return scale, -(minimum * self.offset.astype(np.float32))
