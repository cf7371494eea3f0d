"""A GGUF file in llama.cpp, through llama-cpp-python's low-level calls: logits at every position.

Documents run one by one: decoders by `llama_decode`, encoder-decoders by `llama_encode` and then
`llama_decode`, encoders by `llama_encode` with no pooling, whose embeddings are the hidden states.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Batch, Document, Floats, Ids, stack

CONTAINERS = ("gguf",)
NEEDS = ("llama_cpp",)
INSTALL = "pip install 'gpt54-convert[llama-cpp]'"
_NO_POOLING = 0
_ERROR = 4

_said: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, data: Any) -> None:
    """Keep llama.cpp's errors for our own messages; this object must outlive every call, so it is global."""
    del data
    if level == _ERROR:
        _said.append(text.decode("utf-8", "replace").strip())
        del _said[:-20]


def load_model(path: Path, vocab_only: bool = False) -> Any:
    """llama.cpp's model.  Raises InputError with its own words where it cannot load the file."""
    llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _said.clear()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    # Weights as the file has them: repacked ones crash on some processors (AMX), and differ from machine to
    # machine.
    params.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise InputError(f"{path}: llama.cpp cannot load it: {_said[0] if _said else 'no reason given'}")
    return model


# Opens a file and runs a few tokens in a process of its own.
_PROBE = """
import sys
from pathlib import Path
from gpt54_convert.verify.runners import llama_cpp
llama_cpp.smoke(Path(sys.argv[1]))
"""


def survives(path: Path) -> None:
    """Raise InputError where llama.cpp crashes on the file: it aborts on what it did not expect."""
    status = path.stat()
    _probe(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _probe(path: Path, size_bytes: int, changed_ns: int) -> None:
    del size_bytes, changed_ns  # another file by then
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:  # a plain error of its own is met again here, with its words
        said = [line for line in done.stderr.splitlines() if line.strip()]
        name = signal.Signals(-done.returncode).name
        raise InputError(f"{path}: llama.cpp crashes on it ({name}: {said[-1] if said else 'no word'})")


def smoke(path: Path) -> None:
    """Load the file and run eight tokens."""
    with LlamaCpp(path, 64, 1) as runner:
        runner.logits(stack([Document(np.arange(1, 9), np.empty(0, np.int64), np.arange(1, 9))], 0))


class LlamaCpp:
    """One GGUF file, opened with room for documents of `context` tokens."""

    int8_inputs = True

    def __init__(self, path: Path, context: int, threads: int) -> None:
        self.runtime = f"llama.cpp through llama-cpp-python {llama_cpp.__version__}"
        self._model = load_model(path)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self._width = llama_cpp.llama_model_n_embd(self._model)
        self._encodes = bool(llama_cpp.llama_model_has_encoder(self._model))
        self._decodes = bool(llama_cpp.llama_model_has_decoder(self._model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, context)
        params.n_threads = params.n_threads_batch = threads or len(os.sched_getaffinity(0))
        params.pooling_type = _NO_POOLING
        self._embeds = not self._decodes or is_encoder(self._model)
        params.embeddings = self._embeds
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise InputError(f"{path}: llama.cpp cannot make a context: {' '.join(_said[:1])}")

    def logits(self, batch: Batch) -> Floats:
        rows = [self._document(document) for document in batch.documents]
        out = np.zeros((len(rows), batch.tokens.shape[1], rows[0].shape[1]), np.float32)
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
        return out

    def _document(self, document: Document) -> Floats:
        """Logits [time, vocab] or hidden states [time, width] of one document."""
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        if document.prefix is not None and self._encodes and self._decodes:
            self._call(llama_cpp.llama_encode, document.prefix)
        if self._embeds:
            self._call(llama_cpp.llama_encode, document.tokens)
            return self._answers(llama_cpp.llama_get_embeddings_ith, len(document.tokens), self._width)
        self._call(llama_cpp.llama_decode, document.tokens)
        return self._answers(llama_cpp.llama_get_logits_ith, len(document.tokens), self._vocab)

    def _call(self, function: Any, tokens: Ids) -> None:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens.tolist()):
                batch.token[at], batch.pos[at] = token, at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = True
            code = function(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if code:
            raise InputError(f"llama.cpp answers with error {code}: {' '.join(_said[-2:])}")

    def _answers(self, get: Any, count: int, width: int) -> Floats:
        out = np.empty((count, width), np.float32)
        for at in range(count):
            out[at] = np.ctypeslib.as_array(get(self._context, at), (width,))
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def is_encoder(model: Any) -> bool:
    """Encoder-only models say `attention.causal = false`."""
    key = ctypes.create_string_buffer(128)
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", key, 128)
    value = ctypes.create_string_buffer(16)
    llama_cpp.llama_model_meta_val_str(model, key.value + b".attention.causal", value, 16)
    return value.value == b"false"


class Vocabulary:
    """A GGUF file's tokenizer, as llama.cpp runs it; `model`: the file as already loaded."""

    def __init__(self, path: Path, model: Any = None) -> None:
        if model is None:
            survives(path)
        self._model = model or load_model(path, vocab_only=True)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        found = llama_cpp.llama_model_chat_template(self._model, None)
        self.is_wordpiece = llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_WPM
        self.chat_template = found.decode("utf-8", "replace") if found else None

    def encode(self, text: str, added: bool) -> list[int]:
        """Ids of a text; `added` puts the special tokens around it, special tokens inside are recognised."""
        raw = text.encode("utf-8", "surrogatepass")
        room = len(raw) + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, room, added, True)
        if count < 0:
            raise InputError(f"llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])


def open_runner(path: Path, source: Checkpoint, context: int, threads: int) -> LlamaCpp:
    """The GGUF file `path`.  Raises InputError where llama.cpp cannot load it."""
    del source
    survives(path)
    return LlamaCpp(path, context, threads)
