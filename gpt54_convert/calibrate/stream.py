"""One course of hidden states through a layered model: of the float weights, or of the quantized ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpt54_convert.calibrate.layers import Key, Layer, LayeredModel
from gpt54_convert.calibrate.states import States
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.forward.batch import Batch


class Stream:
    """The states of all batches in front of the layer that comes next, on disk in `folder`."""

    def __init__(self, model: LayeredModel, batches: Sequence[Batch], folder: Path) -> None:
        self._model, self._batches, self._folder = model, batches, folder
        self._hidden = States(folder / "hidden.bin")
        self._others: dict[Key, States] = {}  # by the key of the stack's first layer
        self._first: Layer | None = None
        self._finals: list[States] = []

    def enter(self, stack: int) -> None:
        """Compute what enters a stack; the one before it is finished."""
        if stack:
            self._finish(stack - 1)
        self._first = self._model.stacks[stack][0]
        self._others = {}
        # The last batch tells best which arguments depend on the text: the first one was traced.
        for index in reversed(range(len(self._batches))):
            values = self._model.enter(self._batches[index], stack, self.finals(index))
            self._hidden.write(index, values.pop(self._first.hidden_key).numpy())
            if index == len(self._batches) - 1:
                keys = [key for key, value in values.items() if _differs(value, self._first.call.get(key))]
                self._others = {key: States(self._folder / f"argument-{key}.bin") for key in keys}
            for key, states in self._others.items():
                if not torch.is_floating_point(values[key]):
                    raise UnsupportedError(
                        f"layer {self._first.name} is called with {key!r}, which depends on the text; "
                        "calibrating such a model is not supported"
                    )
                states.write(index, values[key].numpy())

    def run(self, layer: Layer, index: int, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """The states of batch `index` behind `layer`; `put` makes them the next layer's."""
        hidden = torch.from_numpy(self._hidden.read(index))
        return layer.run(hidden, self._arguments(layer, index), parameters)

    def put(self, index: int, hidden: torch.Tensor) -> None:
        self._hidden.write(index, hidden.detach().numpy())

    def leave(self) -> None:
        """The last stack is finished."""
        self._finish(len(self._model.stacks) - 1)

    def finals(self, index: int) -> list[torch.Tensor]:
        """The states of batch `index` behind every finished stack."""
        return [torch.from_numpy(states.read(index)) for states in self._finals]

    def _finish(self, stack: int) -> None:
        self._finals.append(self._hidden)
        self._hidden = States(self._folder / f"hidden-{stack + 1}.bin")

    def _arguments(self, layer: Layer, index: int) -> dict[Key, Any]:
        found: dict[Key, Any] = {}
        for key, states in self._others.items():
            traced = self._first.call[key] if self._first else None
            for own, value in layer.call.items():
                if value is traced:
                    found[own] = torch.from_numpy(states.read(index))
        return found


def _differs(value: Any, traced: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return not isinstance(traced, torch.Tensor) or not torch.equal(value, traced)
