"""llama.cpp through llama-cpp-python's low-level functions: what a GGUF file computes.

The key-value cache is float32 and flash attention is off, so that what remains is the file's own doing and
the runtime's arithmetic.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NONE_POOLING, F32 = 0, 0
_messages: list[str] = []
_log: Any = None


def _library() -> Any:
    import llama_cpp

    global _log  # noqa: PLW0603 - the callback must outlive every call
    if _log is None:
        _log = llama_cpp.llama_log_callback(
            lambda level, text, data: _messages.append(text.decode(errors="replace"))
        )
        llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def opened(path: Path, length: int, embeddings: bool = False) -> Iterator[tuple[Any, Any, Any]]:
    """(library, model, context) for texts of up to `length` tokens; AssertionError with the log otherwise."""
    library = _library()
    _messages.clear()
    options = library.llama_model_default_params()
    options.use_mmap = False
    options.n_gpu_layers = 0
    options.use_extra_bufts = False  # repacked for AMX, llama.cpp crashes on some machines
    model = library.llama_model_load_from_file(str(path).encode(), options)
    assert model, "".join(_messages[-12:])
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(length, 32)
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = F32
    settings.flash_attn_type = 0
    settings.embeddings = embeddings
    settings.pooling_type = NONE_POOLING
    settings.swa_full = True
    context = library.llama_init_from_model(model, settings)
    assert context, "".join(_messages[-12:])
    try:
        yield library, model, context
    finally:
        library.llama_free(context)
        library.llama_model_free(model)


def _run(library: Any, function: Any, context: Any, tokens: Sequence[int]) -> None:
    batch = library.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        status = function(context, batch)
        assert status == 0, f"status {status}: " + "".join(_messages[-5:])
    finally:
        library.llama_batch_free(batch)


def _rows(pointer: Any, count: int, width: int) -> np.ndarray:
    return np.array([np.ctypeslib.as_array(pointer(index), (width,)).copy() for index in range(count)])


def logits(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """A decoder's logits after every token, [time, vocab]."""
    with opened(path, len(tokens)) as (library, model, context):
        _run(library, library.llama_decode, context, tokens)
        vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        return _rows(lambda i: library.llama_get_logits_ith(context, i), len(tokens), vocab)


def seq2seq_logits(path: Path, tokens: Sequence[int], decoder_tokens: Sequence[int]) -> np.ndarray:
    """An encoder-decoder's logits after every decoder token, [time, vocab]."""
    with opened(path, max(len(tokens), len(decoder_tokens))) as (library, model, context):
        _run(library, library.llama_encode, context, tokens)
        _run(library, library.llama_decode, context, decoder_tokens)
        vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        return _rows(lambda i: library.llama_get_logits_ith(context, i), len(decoder_tokens), vocab)


def hidden(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """An encoder's last hidden states, [time, width]."""
    with opened(path, len(tokens), embeddings=True) as (library, model, context):
        _run(library, library.llama_encode, context, tokens)
        width = library.llama_model_n_embd(model)
        return _rows(lambda i: library.llama_get_embeddings_ith(context, i), len(tokens), width)
