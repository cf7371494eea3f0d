"""llama.cpp's own quantizer through llama-cpp-python, with and without an importance matrix."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs, data
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.forward.batch import stack
from gpt54_convert.forward.documents import cut

Importance = Mapping[str, NDArray[np.float32]]
_log: Any = None


def importance(checkpoint: Checkpoint, tokens: int, context: int = 256) -> dict[str, NDArray[np.float32]]:
    """Mean squares of every matrix's inputs on the calibration text, [columns], by the matrix's GGUF name.

    What llama.cpp's imatrix tool collects, and like it without the embedding and the head.
    """
    from gpt54_convert.forward.torch_model import TorchReference

    architecture = archs.by_name(checkpoint.architecture or "")
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).numpy().astype(np.float64)
            sums[name] = sums.get(name, 0) + (rows**2).sum(axis=0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    with TorchReference(checkpoint) as reference:
        for name, module in reference.model.named_modules():
            match = architecture.match(f"{name}.weight")
            if (
                match
                and match.gguf
                and type(module).__name__ in ("Linear", "Conv1D")
                and match.role != "head"
            ):
                module.register_forward_pre_hook(watch(match.gguf))
        for document in cut(data.text("calibration"), checkpoint, tokens, context):
            reference.logits(stack([document], 0))  # one at a time: padding is no input
    return {name: (total / counts[name]).astype(np.float32) for name, total in sums.items()}


def quantize(
    source: Path,
    goal: Path,
    ftype: str,
    matrix: Importance | None = None,
    pure: bool = False,
    threads: int = 1,
) -> None:
    """`source`, a float GGUF file, as llama.cpp's `ftype` (`Q4_K_M`) in `goal`.

    Raises RuntimeError with llama.cpp's last words where it fails.
    """
    import llama_cpp

    words = _listen(llama_cpp)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{ftype.upper()}")
    options.nthread, options.pure = threads, pure
    entries = None
    if matrix is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()  # the last name stays null
        for entry, (name, values) in zip(entries, matrix.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(goal).encode(), options)
    if status:
        raise RuntimeError(f"llama.cpp cannot quantize to {ftype}: " + "".join(words[-5:]))


def _listen(library: Any) -> list[str]:
    global _log  # noqa: PLW0603 - the callback must outlive every call
    words: list[str] = []
    _log = library.llama_log_callback(lambda level, text, data: words.append(text.decode(errors="replace")))
    library.llama_log_set(_log, ctypes.c_void_p(0))
    return words
