"""The pass `prune`: its fields are the command's options and a recipe's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt54_convert.core.options import option
from gpt54_convert.errors import UsageError
from gpt54_convert.prune.options import Calibration

if TYPE_CHECKING:  # NumPy would make `--help` wait
    from gpt54_convert.core.checkpoint import Checkpoint
    from gpt54_convert.core.passes import Context
    from gpt54_convert.prune.patterns import Pattern

TIERS = ("mini", "nano")


@dataclass(frozen=True)
class Prune:
    """Remove layers, heads, channels or single weights."""

    layers: int | None = option(None, "Layers that stay (of both stacks, where there are two).", minimum=1)
    encoder_layers: int | None = option(None, "Encoder layers that stay.", minimum=1)
    decoder_layers: int | None = option(None, "Decoder layers that stay.", minimum=1)
    layer_choice: str = option("influence", "Which layers stay (`list layer-choices`).", metavar="NAME")
    width: int | None = option(None, "Channels of the hidden states that stay.", minimum=1)
    ffn: int | None = option(None, "Feed-forward channels of each layer that stay.", minimum=1)
    heads: int | None = option(None, "Attention heads of each layer that stay.", minimum=1)
    kv_heads: int | None = option(None, "Heads of keys and values that stay.", minimum=1)
    importance: str = option(
        "activations", "How heads and channels are judged (`list importances`).", metavar="NAME"
    )
    tier: str | None = option(
        None, "Reduce layers and widths as the family's mini or nano relative to full.", choices=TIERS
    )
    keep_params: float | None = option(
        None,
        "Reduce layers and widths to this share of the parameters, e.g. 0.5.",
        metavar="SHARE",
        number=True,
    )
    sparsity: str | float | None = option(
        None,
        "Zeros in the layers' matrices: a share of each row, 0.5, or 2:4 (two of four stay).",
        metavar="PATTERN",
    )
    criterion: str = option("wanda", "Which weights become zero (`list criteria`).", metavar="NAME")
    text: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None,
        "Text to measure on. Default: the calibration text of this package.",
        metavar="FILE",
        is_path=True,
    )
    tokens: int = option(16384, "Tokens to measure on.", metavar="N")
    context: int = option(256, "Tokens of one document.", metavar="N")

    def __post_init__(self) -> None:
        for name in ("layers", "encoder_layers", "decoder_layers", "width", "ffn", "heads", "kv_heads"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UsageError(f"--{name.replace('_', '-')} {size} leaves nothing; give 1 or more")
        if self.tier is not None and self.tier not in TIERS:
            raise UsageError(f"--tier {self.tier!r} is not one of {', '.join(TIERS)}")
        if self.tier is not None and self.keep_params is not None:
            raise UsageError("--tier and --keep-params both set all sizes; give one of them")
        if self.keep_params is not None and not 0 < self.keep_params <= 1:
            raise UsageError(
                f"--keep-params {self.keep_params:g} is no share; give one between 0 and 1, e.g. 0.5"
            )
        if self.sparsity is not None:
            self.pattern  # noqa: B018 - refuses what is no pattern
        if not self._asked():
            raise UsageError(
                "nothing to remove was named: give --tier, --keep-params, --layers, --width, --ffn, --heads, "
                "--kv-heads or --sparsity"
            )
        if self.tokens < 1 or self.context < 16:
            raise UsageError("--tokens must be at least 1 and --context at least 16")

    def _asked(self) -> bool:
        sizes = (self.layers, self.encoder_layers, self.decoder_layers, self.width, self.ffn, self.heads)
        return any(
            value is not None for value in (*sizes, self.kv_heads, self.tier, self.keep_params, self.sparsity)
        )

    @property
    def pattern(self) -> Pattern | None:
        """The pattern of zeros.  Raises UsageError where it is none."""
        from gpt54_convert.prune.patterns import parse

        return None if self.sparsity is None else parse(str(self.sparsity))

    @property
    def calibration(self) -> Calibration:
        return Calibration(self.text, self.tokens, self.context)

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The smaller model.  Raises UsageError where no such model can be made of this one."""
        from gpt54_convert.prune.flow import prune

        return prune(self, checkpoint, context)

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same sizes with nothing measured: its tensors are declared, and must not be read."""
        from gpt54_convert.prune.flow import outline

        return outline(self, checkpoint)
