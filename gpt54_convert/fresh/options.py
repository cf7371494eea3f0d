"""What `init` is told: the fields are the command line's options."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpt54_convert.core.options import option
from gpt54_convert.errors import UsageError

TIERS = ("full", "mini", "nano")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Init:
    """Draw a model of the family at random."""

    tier: str = option("full", "Which of the family's three shapes.", choices=TIERS)
    scale: str = option(
        "1",
        "Factor on width, key size, ffn and vocabulary, e.g. 1/16; layers and heads stay.",
        metavar="FACTOR",
    )
    seed: int = option(0, "Seed of the weights: the same one gives the same bytes.", metavar="N")
    dtype: str = option("bfloat16", "Float type of the weights.", choices=DTYPES)

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise UsageError(f"--tier {self.tier!r} is not one of {', '.join(TIERS)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not 0 < self.factor <= 1:
            raise UsageError(f"--scale {self.scale} is not between 0 and 1; write it as 1/16 or 0.25")

    @property
    def factor(self) -> Fraction:
        """The scale as a number.  Raises UsageError where it is none."""
        try:
            return Fraction(self.scale)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"--scale {self.scale!r} is no number; write it as 1/16 or 0.25") from None

    @property
    def name(self) -> str:
        """What the model is called: gpt54-mini, gpt54-full-1-16."""
        factor = self.factor
        return f"gpt54-{self.tier}" + ("" if factor == 1 else f"-{factor.numerator}-{factor.denominator}")
