"""What `generate` and `bench` are told: the fields are the command line's options.  Light, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from gpt54_convert.core.options import option
from gpt54_convert.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    tokens: int = option(64, "Most tokens to write.", metavar="N")
    temperature: float = option(0.0, "0 always takes the likeliest token; 1 draws as the model says.")
    top_k: int = option(40, "Draw among this many of the likeliest tokens; 0 among all.", metavar="N")
    top_p: float = option(0.95, "Draw among the likeliest tokens that together have this probability.")
    seed: int = option(0, "The same seed draws the same text.", metavar="N")

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"--temperature {self.temperature} is below 0")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p} is not between 0 and 1")


@dataclass(frozen=True)
class Load:
    """What `bench` has an artifact do."""

    prompt_tokens: int = option(128, "Tokens of the prompt.", metavar="N")
    tokens: int = option(32, "Tokens to write after it.", metavar="N")
    threads: int = option(0, "Threads of each runtime; 0 takes one per core.", metavar="N")

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.tokens < 1:
            raise UsageError("--prompt-tokens and --tokens must be at least 1")
