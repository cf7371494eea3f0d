"""How much each input and output of every matrix matters to what the model answers: one backward pass.

For small errors D of a matrix, the divergence of the model's answers is about half of the sum of F * D**2,
F the diagonal of the Fisher information; and F[i, j] is the mean over tokens of g[i]**2 * x[j]**2, x the
matrix's input and g the gradient of a label's loss by its output, the label drawn from the model's own
answer (Amari 1998; Martens and Grosse 2015 for its factors).  Kept are the two factors: outputs [out], the
mean of g**2, and inputs [in], the mean of x**2 over tokens weighted by their g**2, so that huge inputs of
tokens that nobody looks at (the first of a text) count for as little as they should.

For models without logits, g is that of a random direction of the hidden states: the same for squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_layers import GradientCheckpointingLayer

from gpt54_convert.calibrate.collect import refuse
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import MeasureError
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.forward.tables import Rows
from gpt54_convert.forward.torch_model import TorchReference, inputs, trim

_SEED = 54
_TOKENS = 64  # whose answers, or their gradients, are looked at together


@dataclass(frozen=True)
class Moments:
    """Of one matrix [out, in]: inputs [in] and outputs [out], as the module's text says; all float64.

    Half of the sum of outputs[i] * inputs[j] * D[i, j]**2 estimates the loss for one token of the answer.
    """

    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]


class _Kept(Protocol):
    """What is kept of a matrix.  reads_inputs: otherwise x is empty, and no inputs are held for it."""

    reads_inputs: bool

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """x [tokens, in], g [tokens, out]."""
        ...


Each = TypeVar("Each", bound=_Kept)


@dataclass
class _Sums:
    inputs: torch.Tensor | float = 0.0
    outputs: torch.Tensor | float = 0.0
    weight: float = 0.0
    reads_inputs: bool = True

    @property
    def seen(self) -> bool:
        return isinstance(self.inputs, torch.Tensor)

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """x [tokens, in], g [tokens, out]."""
        for some, gradients in zip(torch.split(x, _TOKENS), torch.split(g, _TOKENS), strict=True):
            squares = gradients.float() ** 2
            of_token = squares.sum(dim=1)
            self.outputs = self.outputs + squares.sum(dim=0).double()
            self.inputs = self.inputs + (of_token @ some.float() ** 2).double()
            self.weight += float(of_token.sum())


class _Tokens:
    """How much every token matters to one matrix: its g**2, summed over outputs."""

    reads_inputs = False

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        self.parts.append(torch.cat([(some.float() ** 2).sum(dim=1) for some in torch.split(g, _TOKENS)]))


def moments(checkpoint: Checkpoint, documents: Sequence[Document], report: Report) -> dict[str, Moments]:
    """The moments of every matrix that a Linear (or GPT-2's Conv1D) of the model holds, by tensor name.

    documents: run one by one; memory is that of one layer's weights and one document's activations.
    Raises MeasureError where a gradient is not finite.
    """
    sums = _backward(checkpoint, documents, report, "sensitivity of weights", _Sums)
    tokens = sum(len(document.tokens) for document in documents)
    return {name: _moments(name, found, tokens) for name, found in sums.items() if found.seen}


def token_weights(
    checkpoint: Checkpoint, documents: Sequence[Document], report: Report, threads: int = 0
) -> dict[str, NDArray[np.float32]]:
    """For every matrix and token of its input, the sum of g**2 over its outputs, [documents, time].

    documents: all of one length.  Matrices that a document runs twice are left out.
    Raises MeasureError where a gradient is not finite, InputError where an input is not.
    """
    if threads:
        torch.set_num_threads(threads)
    kept = _backward(checkpoint, documents, report, "weighing tokens", _Tokens)
    found = {}
    for name, tokens in kept.items():
        if len(tokens.parts) == len(documents):
            found[name] = torch.stack(tokens.parts).numpy()
            if not np.isfinite(found[name]).all():
                raise _not_finite(name)
    return found


def _backward(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    report: Report,
    title: str,
    make: Callable[[], Each],
) -> dict[str, Each]:
    """Run documents one by one there and back; what each matrix's `make()` kept, by tensor name."""
    with TorchReference(checkpoint) as reference:
        model = reference.model
        model.requires_grad_(False)
        checkpoint_layers(model)
        kept: dict[str, Each] = {}
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Embedding, Rows)):
                module.register_forward_hook(_start_gradients)
            elif type(module).__name__ in ("Linear", "Conv1D"):
                source = reference.weights.source(f"{name}.weight")
                module.register_forward_hook(_watch(source, kept.setdefault(source, make())))
        generator = torch.Generator().manual_seed(_SEED)
        total = sum(len(document.tokens) for document in documents)
        with report.progress(title, total) as advance, half_precision():
            for document in documents:
                trim()
                _back(model(**inputs(stack([document], 0))), generator)
                advance(len(document.tokens))
    trim()
    return kept


@contextmanager
def half_precision() -> Iterator[None]:
    """Products of float32 matrices in bfloat16 where the processor does that faster: these are estimates."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def checkpoint_layers(model: Any) -> None:
    """Let each layer be run again in the backward pass instead of being remembered, without any dropout."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return
    # Run again to its end: a layer that stops early leaves the last matrix that it read in memory.
    model.activation_checkpointing_enable({"use_reentrant": False, "early_stop": False})
    for module in model.modules():
        # Only the layer's own flag: dropout looks at that of its own module.
        module.training = isinstance(module, GradientCheckpointingLayer)


def _start_gradients(module: Any, args: Any, output: torch.Tensor) -> None:
    """Gradients flow from the embeddings on: no weight needs any."""
    if torch.is_grad_enabled() and output.is_leaf:
        output.requires_grad_(True)


def _watch(name: str, kept: _Kept) -> Any:
    def hook(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        refuse(name, x)
        held = x if kept.reads_inputs else x.new_empty(0)
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda g: kept.add(held, g.detach().reshape(-1, g.shape[-1]))
        )

    return hook


def _back(output: Any, generator: torch.Generator) -> None:
    """Back from the loss of labels drawn from the model's answer; without logits, of random directions."""
    answer: torch.Tensor | None = getattr(output, "logits", None)
    if answer is None:
        answer = output.last_hidden_state
        gradient = torch.randn(answer.shape, generator=generator)
    else:
        gradient = torch.softmax(answer.detach().float(), dim=-1)
        flat = gradient.reshape(-1, answer.shape[-1])
        for some in torch.split(flat, _TOKENS):  # in place: answers are large
            below = some.cumsum(dim=-1)
            drawn = torch.rand(len(some), 1, generator=generator) * below[:, -1:]
            labels = torch.searchsorted(below, drawn).clamp_(max=answer.shape[-1] - 1)
            some.scatter_add_(1, labels, torch.full(labels.shape, -1.0))
    answer.backward(gradient.to(answer.dtype))  # type: ignore[no-untyped-call]


def _moments(name: str, sums: _Sums, tokens: int) -> Moments:
    of_inputs, of_outputs = np.asarray(sums.inputs), np.asarray(sums.outputs) / tokens
    if not (np.isfinite(of_inputs).all() and np.isfinite(of_outputs).all()):
        raise _not_finite(name)
    return Moments(of_inputs / sums.weight if sums.weight else of_inputs, of_outputs)


def _not_finite(name: str) -> MeasureError:
    return MeasureError(
        f"tensor {name}: its inputs or gradients are not finite on the calibration text, so the model "
        "itself is broken there; check it with `gpt54-convert verify`"
    )
