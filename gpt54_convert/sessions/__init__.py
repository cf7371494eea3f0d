"""An artifact at work in its own runtime, a token at a time; one file a container.

A session's file has `open_session(subject, threads) -> Session`.  It may import its runtime at the top: it
is loaded only when an artifact asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from gpt54_convert.core import discover
from gpt54_convert.errors import MeasureError, UnsupportedError

if TYPE_CHECKING:
    from gpt54_convert.forward.batch import Floats

INSTALL = {
    "gguf": "pip install 'gpt54-convert[llama-cpp]'",
    "safetensors": "pip install 'gpt54-convert[torch]'",
    "onnx": "pip install 'gpt54-convert[onnx]'",
}


class Session(Protocol):
    """One model, one sequence.

    runtime: the runtime and its version.  kind: `decoder`, `encoder` or `encoder-decoder`.
    context: the longest sequence, in tokens.
    """

    runtime: str
    kind: str
    context: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that open it; special tokens within it are recognised."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        ...

    def ends(self, token: int) -> bool:
        """Whether a token ends the text."""
        ...

    def start(self, ids: list[int]) -> Floats:
        """Read a prompt from an empty memory (an encoder-decoder's encoder does); logits [vocab].

        An encoder answers with the hidden state [width] of the last token.
        """
        ...

    def step(self, token: int) -> Floats:
        """Read one more token; logits [vocab] of what follows."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def open_session(path: Path, threads: int = 0) -> Session:
    """The artifact at `path`, a file or a folder, opened in the runtime of its container.

    Raises InputError for what its runtime cannot load, MeasureError where the runtime is not installed.
    """
    from gpt54_convert.verify.artifact import locate

    subject = locate(path)
    if subject.container not in discover.names(__name__):
        raise UnsupportedError(f"{path}: there is no runtime for {subject.container} artifacts here")
    try:
        module: Any = discover.load(__name__, subject.container)
    except ImportError as error:
        missing = error.name or str(error)
        raise MeasureError(f"{missing} is not installed; {INSTALL[subject.container]}") from error
    return cast(Session, module.open_session(subject, threads))
