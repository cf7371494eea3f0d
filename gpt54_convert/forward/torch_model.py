"""The float model in torch, its weights read from a checkpoint one module at a time.

The model code is transformers' own.  It is built without weights; accelerate's hooks then fetch each
module's tensors when the module runs and drop them after it, so that memory is bounded by the largest
module and not by the model; of embedding and head, rows are read.  A model that fits into `keep_bytes` is
kept between batches.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.forward.tables import embeddings_by_rows, head_by_rows

KEEP_BYTES = 1 << 30
CPU = torch.device("cpu")
_SMALL = 1 << 22  # bytes of norms and biases, kept of a model that does not fit


def trim() -> None:
    """Give back what glibc's heap keeps of smaller freed blocks, before another large piece of work."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _return_freed_memory() -> None:
    """Make glibc give large freed blocks back: weights come and go, and its heap would keep their pages."""
    mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(mmap_threshold, 4 << 20)


_return_freed_memory()


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by the names of a model's parameters, read when asked for.

    model: the model they are for; its tied parameters are read under either name, and names may carry the
    prefix of a model with a head (`bert.`) or not.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, dtype: torch.dtype, keep_bytes: int) -> None:
        self._checkpoint, self._tied, self._dtype = checkpoint, _tied(model), dtype
        self._prefix = f"{model.base_model_prefix}."
        self._left = keep_bytes
        self._kept: dict[str, torch.Tensor] = {}
        self._architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None

    def __getitem__(self, name: str) -> torch.Tensor:
        source = self.source(name)
        if source in self._kept:
            return self._kept[source]
        value = self._read(source)
        size = value.numel() * value.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[source] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)

    def source(self, name: str) -> str:
        """The checkpoint's tensor behind a parameter.  Raises InputError where there is none."""
        for candidate in (name, self._tied.get(name, "")):
            for spelled in (candidate, self._prefix + candidate, candidate.removeprefix(self._prefix)):
                if spelled in self._checkpoint.tensors:
                    return spelled
        raise InputError(f"tensor {name}: the model needs it, but the checkpoint has none")

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensors[name]
        out = np.empty((tensor.row_count, tensor.columns), np.float32)
        for start, stop in tensor.chunks():
            out[start:stop] = tensor.float_rows(start, stop)
        value = torch.from_numpy(out.reshape(tensor.shape)).to(self._dtype)
        match = self._architecture.match(name) if self._architecture else None
        # transformers' Conv1D keeps its matrix as [in, out], a checkpoint every matrix as [out, in].
        transposed = match is not None and match.is_turned
        return value.T.contiguous() if transposed and value.dim() == 2 else value


def build(checkpoint: Checkpoint) -> Any:
    """transformers' model of a checkpoint, its parameters on the meta device, its buffers real."""
    config = model_config(checkpoint)
    auto, extra = auto_class(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = auto.from_config(config, **extra) if hasattr(auto, "from_config") else auto(config)
    return model.eval()


def auto_class(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """transformers' class for a checkpoint's kind, and what to tell it."""
    if checkpoint.architecture is None:
        return _named_class(checkpoint), {}
    table = archs.by_name(checkpoint.architecture)
    kind = table.kind
    if kind == "encoder":
        # Poolers are seldom exported; what is compared are the hidden states below them.
        pools = any(weight.role == "pooler" for weight in table.weights)
        return transformers.AutoModel, {"add_pooling_layer": False} if pools else {}
    if kind == "encoder-decoder":
        return transformers.AutoModelForSeq2SeqLM, {}
    return transformers.AutoModelForCausalLM, {}


def model_config(checkpoint: Checkpoint) -> Any:
    """The config object, computing in float32 with plain attention."""
    values = dict(checkpoint.config)
    values.pop("quantization_config", None)
    model_type = values.pop("model_type", None)
    try:
        config = transformers.AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedError(f"transformers cannot read this config.json: {error}") from error
    config.dtype = torch.float32
    config._attn_implementation = "eager"
    config.use_cache = False
    return config


def _named_class(checkpoint: Checkpoint) -> Any:
    named = checkpoint.config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    found = getattr(transformers, name, None) if name else None
    if found is None:
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no model class {name!r}; name one in "
            '"architectures" of config.json'
        )
    return found


class TorchReference:
    """A checkpoint run by transformers' code in float32 (or `dtype`).

    int8_inputs: weight -> group; the inputs of that weight's layer are rounded to 8 bits in groups, each with
    a scale of its own, as integer kernels do.
    device: where the model runs; what of its weights is kept stays in the processor's memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int = 0,
        dtype: torch.dtype = torch.float32,
        keep_bytes: int = KEEP_BYTES,
        int8_inputs: Mapping[str, int] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.runtime = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
        self._threads = threads
        self.model = build(checkpoint).to(dtype)
        # A part of the weights kept would save little time; what counts then is memory.
        fits = checkpoint.parameter_count * dtype.itemsize <= keep_bytes
        keep = keep_bytes if fits else min(keep_bytes, _SMALL)
        self.weights = weights = Weights(checkpoint, self.model, dtype, keep)
        for name, _ in self.model.named_parameters(remove_duplicate=False):
            weights.source(name)  # a missing tensor is found before anything runs
        if not fits:
            embeddings_by_rows(self.model, checkpoint, weights.source, dtype)
        for name, module in self.model.named_modules() if int8_inputs else ():
            if isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D)):
                group = (int8_inputs or {}).get(weights.source(f"{name}.weight"))
                if group:
                    module.register_forward_pre_hook(partial(_round_inputs, group))
        attach_align_device_hook(self.model, execution_device=device, offload=True, weights_map=weights)
        if not fits:
            head_by_rows(self.model, checkpoint, weights.source)

    def logits(self, batch: Batch) -> Floats:
        return self.forward(batch)[0]

    def forward(self, batch: Batch, layers: bool = False) -> tuple[Floats, list[Floats]]:
        """Logits (or an encoder's hidden states), and if `layers` the hidden states behind each layer."""
        if self._threads:
            torch.set_num_threads(self._threads)
        with torch.no_grad():
            output = self.model(**inputs(batch), **({"output_hidden_states": True} if layers else {}))
        return answer(output), [state.float().numpy() for state in _states(output)] if layers else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.model


def _round_inputs(group: int, module: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Inputs [.., columns] as 8-bit codes times one scale a group, as integer kernels compute."""
    del module
    values = arguments[0]
    if values.shape[-1] % group:
        return arguments
    groups = values.reshape(*values.shape[:-1], -1, group)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((groups / scale).round().mul(scale).reshape(values.shape),)


def inputs(batch: Batch, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """A batch as transformers' models take it."""
    found = {"input_ids": batch.tokens, "attention_mask": batch.mask}
    if batch.prefix is not None and batch.prefix_mask is not None:
        found = {f"decoder_{name}": values for name, values in found.items()}
        found |= {"input_ids": batch.prefix, "attention_mask": batch.prefix_mask}
    return {name: torch.from_numpy(values).to(device) for name, values in found.items()}


def answer(output: Any) -> Floats:
    """Logits, or where a model has none (an encoder) its last hidden states."""
    found = getattr(output, "logits", None)
    value = output.last_hidden_state if found is None else found
    result: Floats = value.float().numpy()
    return result


def _states(output: Any) -> tuple[torch.Tensor, ...]:
    """Hidden states behind every layer; the encoder's first, where there are two stacks."""
    for name in ("hidden_states",):
        if getattr(output, name, None) is not None:
            found: tuple[torch.Tensor, ...] = getattr(output, name)
            return found
    return (*(output.encoder_hidden_states or ()), *(output.decoder_hidden_states or ()))


def _tied(model: Any) -> dict[str, str]:
    """Parameter -> the one it repeats: by transformers' own list, and by sharing one object."""
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    keys = getattr(model, "_tied_weights_keys", None)
    if isinstance(keys, dict):
        tied.update(keys)
    return tied
