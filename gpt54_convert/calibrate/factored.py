"""A model whose matrices are codes times scales, the scales multiplied by factors that can be learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gpt54_convert.forward.torch_model import CPU, TorchReference
from gpt54_convert.quantize.grids import SUPER
from gpt54_convert.quantize.qtensor import QTensor

Read = Callable[[], QTensor]


class Factored:
    """One matrix [out, in] on a grid, with a factor for each float that the grid stores.

    factors: by the stored field, how much is added to it relatively, [rows, groups or superblocks].  The
    float16 minimum of q4_1 and q5_1 moves with its scale; powers of two (mxfp4) have no factor.
    read: the tensor.  keep: hold its codes in memory instead of reading them whenever they are needed.
    device: where it multiplies, and where all that is kept of it lies.
    """

    def __init__(self, read: Read, keep: bool, device: torch.device = CPU) -> None:
        self._read, self._device = read, device
        q = read()
        self._levels = _levels(q).to(device) if keep else None
        self._super = q.grid.kind == SUPER
        self._start(q)

    def _start(self, q: QTensor) -> None:
        # As it is stored, which takes a quarter of what its groups' float32 scales would.
        self._bare = replace(q, codes=np.empty((0, 0), np.uint8))
        self.factors: dict[str, torch.Tensor] = {
            field: torch.zeros(stored.shape, device=self._device, requires_grad=True)
            for field, stored in _stored(q).items()
        }

    def levels(self) -> torch.Tensor:
        """What the codes stand for before scaling, [rows, groups, group]."""
        return _levels(self._read()).to(self._device) if self._levels is None else self._levels

    def product(self, x: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """x [.., in] by this matrix in `dtype`, and the bias: [.., out]."""
        scale, offset = self._scales()
        y: torch.Tensor = _Product.apply(x, scale, offset, self.levels, dtype)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.to(y.device, y.dtype)

    def settle(self) -> Read:
        """Multiply the stored floats by their factors, rounded as they are stored; factors begin anew.

        The tensor to be stored.  A float that would overflow is infinite.
        """
        read = self._read
        q, new = read(), {}
        for field, stored in _stored(q).items():
            factor = 1 + self.factors[field].detach().cpu().numpy()
            new[field] = _times(stored, factor)
            if field == "scale" and q.offset is not None and q.offset.dtype == np.float16:
                new["offset"] = _times(q.offset, factor)

        def settled() -> QTensor:
            return replace(read(), **new)  # type: ignore[arg-type]

        self._read = settled
        self._start(settled())
        return settled

    def _scales(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and offset of each group with the factors of now, [rows, groups]."""
        scale, offset = self._bare.scales()
        of_scale = self.factors.get("super_scale" if self._super else "scale")
        of_offset = self.factors.get("super_offset") if self._super else of_scale
        moved = _moved(self._placed(scale), of_scale)
        return moved, None if offset is None else _moved(self._placed(offset), of_offset)

    def _placed(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


class Switched:
    """A model that runs with its float weights, or with its quantized matrices while `quantized` is set.

    The float weights come from the reference, module by module; its own forwards stay transformers'.
    """

    def __init__(self, reference: TorchReference, matrices: Mapping[str, Factored]) -> None:
        self.model, self.matrices = reference.model, matrices
        self.quantized, self.dtype = False, torch.float32
        self._weights = reference.weights
        self.model.requires_grad_(False)
        self.reached: set[str] = set()
        for name, module in self.model.named_modules():
            if type(module).__name__ in ("Linear", "Conv1D"):
                source = self._weights.source(f"{name}.weight")
                if source in matrices:
                    self._switch(name, module, matrices[source])
                    self.reached.add(source)

    def _switch(self, name: str, module: Any, matrix: Factored) -> None:
        plain, has_bias = module.forward, getattr(module, "bias", None) is not None

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not self.quantized:
                found: torch.Tensor = plain(x)
                return found
            return matrix.product(x, self._weights[f"{name}.bias"] if has_bias else None, self.dtype)

        module.forward = forward


class _Product(torch.autograd.Function):
    """x Wᵀ, W = levels * scale + offset in groups; W is made again for the backward pass, not remembered."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        levels: Callable[[], torch.Tensor],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.levels, ctx.dtype = levels, dtype
        return x.to(dtype) @ _weight(levels(), scale, offset).to(dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, offset = ctx.saved_tensors
        levels, dtype = ctx.levels(), ctx.dtype
        gradient = gradients[0].to(dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ _weight(levels, scale, offset).to(dtype)).to(x.dtype)
        of_scale = of_offset = None
        if ctx.needs_input_grad[1]:
            rows = gradient.reshape(-1, gradient.shape[-1])
            of_weight = (rows.T @ x.to(dtype).reshape(len(rows), -1)).float().view(levels.shape)
            of_offset = None if offset is None else of_weight.sum(-1)
            of_scale = of_weight.mul_(levels).sum(-1)
        return of_x, of_scale, of_offset, None, None


def _weight(levels: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    values = levels.float().mul_(scale[..., None])
    if offset is not None:
        values += offset[..., None]
    return values.view(len(levels), -1)


def _levels(q: QTensor) -> torch.Tensor:
    rows, columns = q.shape
    values = q.unscaled()
    small = values.astype(np.int8)
    if not np.array_equal(small, values):
        small = values.astype(np.float16)  # type: ignore[assignment]  # exact: halves, or up to 255
    return torch.from_numpy(small.reshape(rows, -1, q.grid.group or columns))


def _stored(q: QTensor) -> dict[str, np.ndarray[Any, Any]]:
    """The stored fields that have factors."""
    names = ("super_scale", "super_offset") if q.grid.kind == SUPER else ("scale",)
    found = {name: getattr(q, name) for name in names}
    return {name: value for name, value in found.items() if value is not None and value.dtype == np.float16}


def _moved(values: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """values [rows, groups] times 1 + factor [rows, groups or superblocks]."""
    if factor is None:
        return values
    per_super = values.shape[1] // factor.shape[1]
    return values * (1 + (factor if per_super == 1 else factor.repeat_interleave(per_super, 1)))


def _times(stored: np.ndarray[Any, Any], factor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        found: np.ndarray[Any, Any] = (stored.astype(np.float32) * factor).astype(np.float16)
    return found
