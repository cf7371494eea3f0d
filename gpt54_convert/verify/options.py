"""What `verify` is told: the fields are the command line's options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt54_convert.core.options import check_threads, option
from gpt54_convert.errors import UsageError

LEVELS = ("tensors", "outputs", "all")
QUICK = "quick"  # what follows quantize and convert; no choice of the command


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to look, on which text, and what to demand."""

    level: str = option(
        "all",
        "tensors: files, config, tokenizer and weights; outputs: the model's answers; all: both, and where "
        "the error arises.",
        choices=LEVELS,
    )
    gate: tuple[str, ...] = option(
        (), "Demand this instead of the default, e.g. 'kl_mean<=0.05', 'kl_mean<=1.1*rtn'.", metavar="GATE"
    )
    baseline: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None, "JSON report of an earlier release: be no worse than it.", metavar="FILE", is_path=True
    )
    text: Path | None = option(  # noqa: RUF009
        None, "Text to measure on. Default: the held-out text of this package.", metavar="FILE", is_path=True
    )
    tokens: int = option(4096, "Tokens to measure on.", metavar="N")
    context: int = option(256, "Tokens of one document at most; a tenth of --tokens at most.", metavar="N")
    batch: int = option(0, "Documents run at once; 0 takes what fits into 256 MB of logits.", metavar="N")
    threads: int = option(0, "Threads of each runtime; 0 takes one per core.", metavar="N")

    def __post_init__(self) -> None:
        if self.level not in (*LEVELS, QUICK):
            raise UsageError(f"--level {self.level!r} is not one of {', '.join(LEVELS)}")
        if self.context < 16:
            raise UsageError(f"--context {self.context} is too short to measure anything; take 16 or more")
        if self.tokens < 1:
            raise UsageError("--tokens must be at least 1")
        check_threads(self.threads)

    @property
    def length(self) -> int:
        """Tokens of one document at most: few tokens are still cut into the ten that an interval needs."""
        return min(self.context, max(16, self.tokens // 10))

    @property
    def tensors(self) -> bool:
        """Whether weights are compared one by one."""
        return self.level != "outputs"

    @property
    def quick(self) -> bool:
        """Whether seconds count more than figures."""
        return self.level == QUICK

    @property
    def outputs(self) -> bool:
        """Whether the models are run."""
        return self.level != "tensors"
