"""transformers' model taken apart into layers that can be run one at a time.

The model code stays transformers' own: each layer's place in the model is taken by a stand-in, which sees the
arguments that the model would call the layer with (masks, position embeddings, T5's position bias, the
encoder's states) and answers for it.  A first batch is traced through the float model; then each layer can be
called alone, with other hidden states and other weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook
from torch import nn
from torch.func import functional_call

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.forward.batch import Batch
from gpt54_convert.forward.tables import embeddings_by_rows, head_of
from gpt54_convert.forward.torch_model import Weights, build, inputs

Parameters = dict[str, torch.Tensor]
Key = int | str  # a positional argument's place, or a keyword
_HIDDEN = "hidden_states"
_TRACE, _REPLAY, _CATCH = "trace", "replay", "catch"


class _ReachedError(Exception):
    """Ends a forward pass where it got to what was looked for."""

    def __init__(self, values: dict[Key, Any]) -> None:
        super().__init__()
        self.values = values


@dataclass
class Layer:
    """One layer: its module (parameters on the meta device), and how the model calls it.

    name: its name in the model.  tensors: the checkpoint's tensor behind each parameter.
    call: the arguments of the traced batch, without the hidden states.  answer: what it returned, likewise.
    shared: arguments that are the first layer's, by that layer's key, where batches differ in them.
    """

    name: str
    module: nn.Module
    tensors: Mapping[str, str]
    call: dict[Key, Any] = field(default_factory=dict)
    answer: Any = None
    hidden_key: Key = 0

    def run(self, hidden: torch.Tensor, others: Mapping[Key, Any], parameters: Parameters) -> torch.Tensor:
        """The hidden states behind the layer.  others: arguments that differ from the traced ones."""
        found = self.ask(hidden, others, parameters)
        state: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return state

    def ask(self, hidden: torch.Tensor, others: Mapping[Key, Any], parameters: Parameters) -> Any:
        """All that the layer returns."""
        values: dict[Key, Any] = dict(self.call)
        values.update(others)
        values[self.hidden_key] = hidden
        args = tuple(values[key] for key in range(sum(isinstance(key, int) for key in values)))
        kwargs: dict[str, Any] = {key: each for key, each in values.items() if isinstance(key, str)}
        return functional_call(self.module, parameters, args, kwargs)

    def matrices(self) -> dict[str, nn.Module]:
        """Modules that multiply by a matrix of the checkpoint, by its name there."""
        found = {}
        for name, module in self.module.named_modules():
            tensor = self.tensors.get(f"{name}.weight")
            if tensor is not None and not isinstance(module, nn.Embedding) and module.weight.dim() == 2:
                found[tensor] = module
        return found


class _Place(nn.Module):
    """Stands where a layer stood."""

    def __init__(self, owner: LayeredModel, layer: Layer) -> None:
        super().__init__()
        self.__dict__.update(owner=owner, layer=layer)  # no submodules: hooks must not see the layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"].module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values: dict[Key, Any] = dict(enumerate(args))
        values.update(kwargs)
        return self.owner.visit(self.layer, values)


class LayeredModel:
    """A checkpoint's model, its layers apart; `stacks` are in the order in which they run."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = build(checkpoint)
        self.weights = Weights(checkpoint, self.model, torch.float32, keep_bytes=0)
        self.stacks: list[list[Layer]] = [self._take_apart(name) for name in _stack_names(self.model)]
        if not self.stacks:
            raise UnsupportedError("this model has no stack of layers that could be walked through")
        embeddings_by_rows(self.model, checkpoint, self.weights.source, torch.float32)
        self._mode, self._visited, self._replayed = "", [], {}  # type: ignore[var-annotated]
        self._goal: Layer | None = None
        outer = Weights(checkpoint, self.model, torch.float32, keep_bytes=1 << 28)
        attach_align_device_hook(
            self.model, execution_device=torch.device("cpu"), offload=True, weights_map=outer
        )

    def _take_apart(self, name: str) -> list[Layer]:
        modules = self.model.get_submodule(name)
        layers = []
        for index, module in enumerate(modules):
            own = f"{name}.{index}"
            parameters = [key for key, _ in module.named_parameters(remove_duplicate=False)]
            tensors = {key: self.weights.source(f"{own}.{key}") for key in parameters}
            layers.append(Layer(own, module, tensors))
            modules[index] = _Place(self, layers[-1])
        return layers

    def parameters(self, layer: Layer) -> Parameters:
        """The float weights of a layer, read now."""
        return {key: self.weights[f"{layer.name}.{key}"] for key in layer.tensors}

    def trace(self, batch: Batch) -> None:
        """Run the float model up to its head on one batch and learn how it calls its layers."""
        self._mode, self._visited = _TRACE, []
        with self._ending_at_head(), suppress(_ReachedError):
            self._run(batch)
        order = {id(layer): place for place, layer in enumerate(self._visited)}
        self.stacks.sort(key=lambda stack: order.get(id(stack[0]), -1))
        for stack in self.stacks:
            if any(id(layer) not in order for layer in stack):
                raise UnsupportedError(f"transformers' model does not run its layer {stack[0].name}")

    def enter(self, batch: Batch, stack: int, finals: list[torch.Tensor]) -> dict[Key, Any]:
        """The arguments of a stack's first layer; finals: the states behind the stacks before it."""
        self._goal, self._mode = self.stacks[stack][0], _CATCH
        return self._replay(batch, finals)

    def head_input(self, batch: Batch, finals: list[torch.Tensor]) -> torch.Tensor | None:
        """What enters the head; None for a model without one."""
        if head_of(self.model)[1] is None:
            return None
        self._goal, self._mode = None, _REPLAY
        with self._ending_at_head():
            found: torch.Tensor = self._replay(batch, finals)[0]
            return found

    @contextmanager
    def _ending_at_head(self) -> Iterator[None]:
        """Within, a forward pass raises _ReachedError with what enters the head instead of running it."""

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _ReachedError({0: args[0]})

        head = head_of(self.model)[1]
        hooks = [] if head is None else [head.register_forward_pre_hook(stop)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def head(self) -> str | None:
        """The checkpoint's tensor behind the head: the embedding, where they are tied."""
        name, head = head_of(self.model)
        return None if head is None else self.weights.source(f"{name}.weight")

    def _replay(self, batch: Batch, finals: list[torch.Tensor]) -> dict[Key, Any]:
        self._replayed = {
            id(layer): state for stack, state in zip(self.stacks, finals, strict=False) for layer in stack
        }
        try:
            self._run(batch)
        except _ReachedError as reached:
            return reached.values
        finally:
            self._replayed = {}
        raise UnsupportedError("transformers' model did not reach its next stack of layers")

    def _run(self, batch: Batch) -> None:
        with torch.no_grad():
            self.model(**inputs(batch))

    def visit(self, layer: Layer, values: dict[Key, Any]) -> Any:
        """Answer for a layer that the model calls."""
        if layer is self._goal and self._mode == _CATCH:
            raise _ReachedError(values)
        if self._mode == _TRACE:
            return self._record(layer, values)
        return _with_hidden(layer.answer, self._replayed[id(layer)])

    def _record(self, layer: Layer, values: dict[Key, Any]) -> Any:
        self._visited.append(layer)
        layer.hidden_key = 0 if 0 in values else _HIDDEN
        hidden = values.pop(layer.hidden_key)
        layer.call = values
        found = layer.ask(hidden, {}, self.parameters(layer))
        layer.answer = _with_hidden(found, torch.empty(0))
        return found


def _with_hidden(answer: Any, hidden: torch.Tensor) -> Any:
    return (hidden, *answer[1:]) if isinstance(answer, tuple) else hidden


def _stack_names(model: nn.Module) -> list[str]:
    """The outermost lists of modules that have parameters."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            found.append(name)
    return found
