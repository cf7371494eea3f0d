"""Running the model on text, to see which layers and channels do something.

Documents of equal length run together, so that there is no padding and every position counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from gpt54_convert import archs, data
from gpt54_convert.archs import Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Batch, Document, Floats, stack
from gpt54_convert.forward.documents import cut
from gpt54_convert.forward.torch_model import TorchReference
from gpt54_convert.prune.evidence import described
from gpt54_convert.prune.needs import Arrays
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.spaces import WIDTH

LOGITS_BYTES = 256 << 20  # of one batch


Hook = Callable[[torch.Tensor], None]


def distances(checkpoint: Checkpoint, context: Context, calibration: Calibration) -> Arrays:
    """How far the hidden states move from layer to layer, averaged over all tokens.

    `STACK/cosine`, `STACK/angle` -> [depth + 1, depth + 1], as `layers.Distances` has them.
    """
    finals = {
        name: match for name, match in described(checkpoint).items() if match.role.endswith("norm.final")
    }
    before_norm: dict[str, Floats] = {}
    sums: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0.0, 0])

    def keep(stack_name: str) -> Hook:
        return lambda entering: before_norm.update({stack_name: entering.float().numpy()})

    with TorchReference(checkpoint, context.threads) as reference:
        hooks = {name: keep(_stack_of(match.role)) for name, match in finals.items()}
        with hooked(reference, hooks):
            for batch in batches(checkpoint, context, calibration):
                _, states = reference.forward(batch, layers=True)
                for name, part in _by_stack(checkpoint, states):
                    if name in before_norm:  # transformers hands out the last states behind the norm
                        part[-1] = before_norm[name]
                    cosine = _cosines(part)
                    sums[name][0] += (1 - cosine).sum(0)
                    sums[name][1] += np.arccos(np.clip(cosine, -1, 1)).sum(0) / np.pi
                    sums[name][2] += len(cosine)
    result = {}
    for name, (cosine, angle, count) in sums.items():
        result[f"{name}/cosine"], result[f"{name}/angle"] = cosine / count, angle / count
    return result


def flows(checkpoint: Checkpoint, context: Context, calibration: Calibration) -> Arrays:
    """Sums of squares over all tokens: of each input of every matrix, and of each channel before every norm.

    By the names of the checkpoint's tensors: matrix -> [in], norm -> [width].
    """
    matches = described(checkpoint)
    sums: Arrays = {}

    def add(name: str) -> Hook:
        def hook(entering: torch.Tensor) -> None:
            squares = entering.double().square().reshape(-1, entering.shape[-1]).sum(0).numpy()
            sums[name] = sums.get(name, 0.0) + squares

        return hook

    with TorchReference(checkpoint, context.threads) as reference:
        hooks = {
            name: add(name)
            for name, module in _by_weight(reference).items()
            if isinstance(module, (torch.nn.Linear, Conv1D)) or _is_norm(matches.get(name))
        }
        with hooked(reference, hooks):
            for batch in batches(checkpoint, context, calibration):
                reference.forward(batch)
    return sums


def _is_norm(match: Match | None) -> bool:
    return match is not None and match.weight.shape == (WIDTH,)


def _by_weight(reference: TorchReference) -> dict[str, Any]:
    """Modules that own a weight, by its name in the checkpoint; a tied head replaces the embedding."""
    named = reference.model.named_modules()
    owners = {
        name: module for name, module in named if isinstance(getattr(module, "weight", None), torch.Tensor)
    }
    return {reference.weights.source(f"{name}.weight"): module for name, module in owners.items()}


@contextmanager
def hooked(reference: TorchReference, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call hooks with what enters the module of each named weight."""
    modules = _by_weight(reference)

    def before(hook: Hook) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        return lambda module, arguments: hook(arguments[0].detach())

    handles = [modules[name].register_forward_pre_hook(before(hook)) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stack_of(role: str) -> str:
    return "encoder_layers" if role.startswith("enc.") else "layers"


def _by_stack(checkpoint: Checkpoint, states: list[Floats]) -> Iterator[tuple[str, list[Floats]]]:
    """States before and behind each layer, of the encoder and then of the decoder where there are both."""
    sizes = archs.by_name(checkpoint.architecture or "").sizes(checkpoint.config)
    first = sizes["encoder_layers"] + 1 if "encoder_layers" in sizes else 0
    if first:
        yield "encoder_layers", states[:first]
    yield "layers", states[first:]


def _cosines(states: list[Floats]) -> Floats:
    """Between the states at all depths, for each token: [tokens, depth + 1, depth + 1]."""
    rows = np.stack([state.reshape(-1, state.shape[-1]) for state in states], 1)
    rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return rows @ rows.transpose(0, 2, 1)


def batches(checkpoint: Checkpoint, context: Context, calibration: Calibration) -> Iterator[Batch]:
    documents = cut(_text(calibration), checkpoint, calibration.tokens, calibration.context)
    by_length: dict[tuple[int, int], list[Document]] = defaultdict(list)
    for document in documents:
        by_length[len(document.tokens), 0 if document.prefix is None else len(document.prefix)].append(
            document
        )
    vocab = int(checkpoint.config.get("vocab_size") or 1024)
    with context.report.progress("running the model", sum(len(each.tokens) for each in documents)) as advance:
        for (length, _), group in by_length.items():
            size = max(1, min(16, LOGITS_BYTES // (4 * vocab * length)))
            for first in range(0, len(group), size):
                batch = stack(group[first : first + size], first)
                yield batch
                advance(sum(batch.lengths))


def _text(calibration: Calibration) -> str:
    if calibration.text is None:
        return data.text("calibration")
    try:
        return calibration.text.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {calibration.text}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--text {calibration.text}: is not UTF-8 text ({error})") from error
