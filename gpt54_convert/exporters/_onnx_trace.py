"""transformers' model code as ONNX graphs, traced without a single weight.

The model is built from its config; every parameter is a fake tensor, of which torch knows shape and type
alone, while buffers (rotary frequencies) are real and end up as constants in the graph.  Parameters that
come from one tensor of the checkpoint are one parameter here, and others are not, whatever transformers
ties by itself: so the checkpoint alone decides whether a head is tied.

`trace` answers `onnx_ir` models whose initialisers have no values yet; `_onnx_graph` rewrites and fills them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import ConvertError, InternalError, UnsupportedError
from gpt54_convert.exporters import _onnx_calls as calls
from gpt54_convert.exporters._onnx_tidy import tidy
from gpt54_convert.forward import torch_model

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
# What the exporters of torch and onnxscript say to programmers.
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.fx", "torch.export", "torch.__trace")


_KEPT = 2
_kept: dict[str, list[Traced]] = {}
_used: dict[str, set[str]] = {}


@dataclass(frozen=True)
class Traced:
    """One graph of a model.

    stem: its file's name without `.onnx`, as optimum calls it.
    model: the graph; an initialiser without a value is a parameter.
    sources: initialiser -> the checkpoint's tensor that it is.
    """

    stem: str
    model: ir.Model
    sources: dict[str, str]


def used_tensors(checkpoint: Checkpoint) -> set[str]:
    """The checkpoint's tensors that its graphs will read.  Raises InputError where one is missing."""
    key = _key(checkpoint, "")
    if key not in _used:
        _used.clear()
        _used[key] = set(_sources(torch_model.build(checkpoint), checkpoint).values())
    return _used[key]


def trace(checkpoint: Checkpoint, dtype: str) -> list[Traced]:
    """The graphs of a model that computes in `dtype`, in optimum's order; they are the caller's to change.

    Tracing takes about two seconds a layer, and a plan asks for the same graphs that are written later: so
    the last ones are kept, a few megabytes each.
    Raises InputError where the checkpoint lacks a tensor, UnsupportedError for a model that torch or
    transformers cannot trace.
    """
    key = _key(checkpoint, dtype)
    if key not in _kept:
        while len(_kept) >= _KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _trace(checkpoint, dtype)
    return [
        replace(traced, model=traced.model.clone(), sources=dict(traced.sources)) for traced in _kept[key]
    ]


def _key(checkpoint: Checkpoint, dtype: str) -> str:
    """Everything that a graph depends on before weights are bound to it."""
    shapes = [(name, tensor.shape) for name, tensor in checkpoint.tensors.items()]
    return json.dumps([dict(checkpoint.config), checkpoint.architecture, dtype, shapes], default=str)


def _trace(checkpoint: Checkpoint, dtype: str) -> list[Traced]:
    model = torch_model.build(checkpoint)
    model.config.use_cache = True
    sources = _sources(model, checkpoint)
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # buffers are real
    _fake(model, sources, mode, _DTYPES[dtype])
    kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "encoder"
    _demand_still_rotation(model)
    try:
        with _quiet(), torch.no_grad():
            return [_trace_call(call, sources) for call in calls.of(model, kind, mode)]
    except (ConvertError, MemoryError):
        raise
    except Exception as error:  # torch's and onnxscript's exceptions have no common base
        reason = str(error).strip().split("\n", 1)[0]
        raise UnsupportedError(f"the model cannot be traced to ONNX ({reason})") from error


def _demand_still_rotation(model: Any) -> None:
    """UnsupportedError where rotary frequencies change with the text: a graph would keep the first."""
    for module in model.modules():
        found = getattr(module, "rope_type", None)
        for kind in found.values() if isinstance(found, Mapping) else [found]:
            if kind is not None and ("dynamic" in kind or kind == "longrope"):
                raise UnsupportedError(
                    f"config.json: rope_type {kind!r} rotates by the length of the text, which an ONNX graph "
                    "cannot follow; write safetensors (--to safetensors)"
                )


def _sources(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Parameter -> the checkpoint's tensor that it is; tied ones share theirs."""
    weights = torch_model.Weights(checkpoint, model, torch.float32, 0)
    return {name: weights.source(name) for name, _ in model.named_parameters(remove_duplicate=False)}


def _fake(model: Any, sources: Mapping[str, str], mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Replace every parameter by a fake one, shared by those that the same tensor of the checkpoint fills."""
    wide = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    made: dict[str, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            own = torch.float32 if set(wide) & set(full.split(".")) else dtype
            if sources[full] not in made:
                with mode:
                    empty = torch.empty(parameter.shape, dtype=own)
                    made[sources[full]] = torch.nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = made[sources[full]]


def _trace_call(call: calls.Call, sources: Mapping[str, str]) -> Traced:
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(axes, auto) for name, axes in call.input_axes.items()}
    program = torch.export.export(
        call,
        (call.samples,),
        dynamic_shapes=(shapes,),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    model = _to_onnx(program, call)
    _name_axes(model, call)
    found = {}
    for name in list(model.graph.initializers):
        value = model.graph.initializers[name]
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
        elif value.const_value is None:
            found[name] = sources[name.removeprefix("model.")]
    return Traced(call.stem, model, found)


def _to_onnx(program: Any, call: calls.Call) -> ir.Model:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=list(call.samples),
        output_names=list(call.output_axes),
    )
    if exported is None:
        raise InternalError("torch.onnx.export gave no program")
    model: ir.Model = exported.model
    for value in model.graph.initializers.values():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            value.const_value = None  # without it no pass tries to fold a weight
    tidy(model)
    _strip(model)
    return model


def _strip(model: ir.Model) -> None:
    """Drop what only debuggers read: stack traces with this machine's paths, and documentation."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_version = None
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _name_axes(model: ir.Model, call: calls.Call) -> None:
    """Optimum's names for the free axes of inputs and outputs, in place of torch's symbols."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        axes = call.input_axes.get(value.name or "") or call.output_axes[value.name or ""]
        if value.shape is None:
            raise InternalError(f"torch gave no shape for {value.name}")
        value.shape = ir.Shape([axes.get(axis, size) for axis, size in enumerate(value.shape)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporters print or log reaches the user; their errors do, as exceptions."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
