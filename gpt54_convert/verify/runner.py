"""What every runner answers."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from gpt54_convert.forward.batch import Batch, Floats


class Runner(Protocol):
    """A model in some runtime."""

    runtime: str
    """The runtime and its version, for people."""

    int8_inputs: bool
    """Whether its kernels round the inputs of quantized layers to 8 bits, and so add an error."""

    def logits(self, batch: Batch) -> Floats:
        """Logits [batch, time, vocab], or hidden states [batch, time, width] of an encoder.

        Positions of padding hold anything.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
