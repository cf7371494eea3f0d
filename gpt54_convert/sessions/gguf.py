"""A GGUF file in llama.cpp: its own tokenizer, its own memory of keys and values."""

from __future__ import annotations

import ctypes
import os

import llama_cpp
import numpy as np

from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Floats
from gpt54_convert.verify.artifact import Subject
from gpt54_convert.verify.runners.llama_cpp import Vocabulary, is_encoder, load_model

_LONGEST = 4096  # tokens of context that memory is set aside for


class GgufSession:
    """See `sessions.Session`."""

    def __init__(self, subject: Subject, threads: int) -> None:
        self.runtime = f"llama.cpp through llama-cpp-python {llama_cpp.__version__}"
        self._model = load_model(subject.path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._words = Vocabulary(subject.path, self._model)
        self.kind = "decoder"
        if is_encoder(self._model):
            self.kind = "encoder"
        elif llama_cpp.llama_model_has_encoder(self._model):
            self.kind = "encoder-decoder"
        self.context = min(_LONGEST, llama_cpp.llama_model_n_ctx_train(self._model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = self.context if self.kind != "decoder" else min(512, self.context)
        params.n_threads = params.n_threads_batch = threads or len(os.sched_getaffinity(0))
        params.embeddings = self.kind == "encoder"
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise InputError(f"{subject.path}: llama.cpp cannot make a context of {self.context} tokens")
        self._batch_tokens = int(params.n_batch)

    def encode(self, text: str) -> list[int]:
        return self._words.encode(text, True)

    def decode(self, ids: list[int]) -> str:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        room = 64 + 16 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(self._vocab, tokens, len(ids), buffer, room, True, False)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            room = -count

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def start(self, ids: list[int]) -> Floats:
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        self._read = 0
        if self.kind == "decoder":
            for first in range(0, len(ids), self._batch_tokens):
                self._call(llama_cpp.llama_decode, ids[first : first + self._batch_tokens])
            return self._logits()
        self._call(llama_cpp.llama_encode, ids)
        if self.kind == "encoder":
            width = llama_cpp.llama_model_n_embd(self._model)
            found = llama_cpp.llama_get_embeddings_ith(self._context, len(ids) - 1)
            return np.ctypeslib.as_array(found, (width,)).copy()
        self._read = 0
        first_token = llama_cpp.llama_model_decoder_start_token(self._model)
        return self.step(first_token if first_token >= 0 else llama_cpp.llama_vocab_bos(self._vocab))

    def step(self, token: int) -> Floats:
        self._call(llama_cpp.llama_decode, [token])
        return self._logits()

    def _call(self, function: object, ids: list[int]) -> None:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for at, token in enumerate(ids):
                batch.token[at], batch.pos[at] = token, self._read + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = at == len(ids) - 1
            code = function(self._context, batch)  # type: ignore[operator]
        finally:
            llama_cpp.llama_batch_free(batch)
        if code:
            raise InputError(f"llama.cpp answers with error {code} after {self._read} tokens")
        self._read += len(ids)

    def _logits(self) -> Floats:
        size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), (size,)).copy()

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def open_session(subject: Subject, threads: int) -> GgufSession:
    """The GGUF file of the artifact.  Raises InputError where llama.cpp cannot load it."""
    return GgufSession(subject, threads)
