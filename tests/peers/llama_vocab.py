"""llama.cpp's own tokenizer, from a GGUF file that need not hold any weights: the oracle for token ids."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = "llama-cpp-python is missing (pip install llama-cpp-python==0.3.36): not compared with llama.cpp"


def available() -> bool:
    """True where llama.cpp can be called; tests skip with `MISSING` otherwise."""
    return find_spec("llama_cpp") is not None


class LlamaVocab:
    """The vocabulary of one GGUF file, loaded by llama.cpp."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self.said: list[str] = []
        # llama.cpp keeps the pointer: the object must live as long as the library may log
        self._log = llama_cpp.llama_log_callback(self._listen)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        _alive.append(self._log)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}: {''.join(self.said)[-400:]}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`; special tokens in the text count as such."""
        data = text.encode()
        room = len(data) + 16
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise RuntimeError(f"{-count} tokens for {len(data)} bytes")
        return list(ids[:count])

    def _listen(self, _level: int, text: bytes, _data: object) -> None:
        self.said.append(text.decode(errors="replace"))

    def close(self) -> None:
        """Free the model."""
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaVocab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_alive: list[Any] = []
