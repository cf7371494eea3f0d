"""A whole job as data: the fields of these classes are the command line's options and a recipe's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.options import check_threads, option, to_dict
from gpt54_convert.core.passes import Pass, as_dict
from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.schemes import BITS, SCHEMES
from gpt54_convert.verify.options import VerifyOptions

LAYOUTS = ("optimum", "transformers.js")
ACTIVATIONS = ("dynamic", "static")
DTYPES = ("keep", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Quantize(Calibration):
    """Round weights to few bits."""

    bits: int | None = option(
        None,
        "Bits per weight code: each container gets its best scheme of that many, 4 unless said otherwise.",
        choices=tuple(BITS),
    )
    scheme: str | None = option(
        None,
        "A named mix of grids, or a grid for every matrix (`list schemes`).",
        metavar="NAME",
        listed="schemes",
    )
    method: str | None = option(
        None,
        "How codes are chosen: rtn (rounding), search (best scales), or by running the model (needs torch): "
        "imatrix, gptq and more (`list methods`). Default: gptq for --bits 2 to 6 and for budgets, where the "
        "model can be run; else search.",
        metavar="NAME",
        listed="methods",
    )
    fast: bool = option(False, "Choose codes by scale search alone: no model is run to choose them.")
    stats: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None,
        "An imatrix for --method imatrix (llama.cpp's GGUF kind, or made by `calibrate`): no model is run.",
        metavar="FILE",
        is_path=True,
    )
    target_bpw: float | None = option(
        None,
        "Mix grids for the least loss at so many bits per weight of the files (4.25); measured, needs torch.",
        metavar="BITS",
        number=True,
    )
    target_size: str | None = option(None, "The same, at files of this size: 350MB, 1.2GiB.", metavar="SIZE")
    max_kl: float | None = option(
        None,
        "Mix grids for the smallest files whose KL stays below it (0.03).",
        metavar="NATS",
        number=True,
    )
    activations: str = option(
        "dynamic",
        "For w8a8, how what enters a matrix is rounded: scaled as it comes, or (static, ONNX) by the range "
        "measured on the calibration text.",
        choices=ACTIVATIONS,
    )
    keep: tuple[str, ...] = option(
        (), "Put a role on a grid of your own, e.g. head=q8_0, 'ffn.*'=float16.", metavar="ROLE=GRID"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [flag for flag, value in self._choosers().items() if value is not None]
        if len(chosen) > 1:
            verb = "both" if len(chosen) == 2 else "all"
            raise UsageError(f"{' and '.join(chosen)} {verb} choose the grids; give one of them")
        for flag in ("--target-bpw", "--max-kl"):
            value = self._choosers()[flag]
            if value is not None and not 0 < float(value) < float("inf"):
                raise UsageError(f"{flag} {value} is not a positive number")
        if self.target_size is not None:
            parse_size(self.target_size)
        if self.stats is not None and self.method != "imatrix":
            raise UsageError(
                "--stats holds mean squares, which is what --method imatrix uses; "
                + (f"{self.method} does not" if self.method else "add it")
            )
        if self.fast and self.method not in (None, "search"):
            raise UsageError(f"--fast is scale search, and --method {self.method} is not; give one of them")
        if self.bits is not None and self.bits not in BITS:
            raise UsageError(f"--bits {self.bits} is not one of {', '.join(map(str, BITS))}")
        self._check_activations()

    def _check_activations(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise UsageError(f"--activations {self.activations!r} is not one of {', '.join(ACTIVATIONS)}")
        rounding = [name for name, found in SCHEMES.items() if found.activations]
        if self.activations == "static" and (self.scheme or "").lower() not in rounding:
            raise UsageError(
                f"--activations static is for schemes that round activations; add --scheme "
                f"{' or '.join(rounding)}, or leave it out"
            )

    def _choosers(self) -> dict[str, int | float | str | None]:
        return {
            "--bits": self.bits,
            "--scheme": self.scheme,
            "--target-bpw": self.target_bpw,
            "--target-size": self.target_size,
            "--max-kl": self.max_kl,
        }

    @property
    def solver(self) -> str:
        """The method by name; that of scale search where nobody has chosen one."""
        return self.method or "search"

    @property
    def has_budget(self) -> bool:
        """Whether grids are chosen tensor by tensor, to meet a size or a loss."""
        return any(value is not None for value in (self.target_bpw, self.target_size, self.max_kl))

    @property
    def schemes(self) -> tuple[str, ...]:
        """Scheme names in order of preference; a container takes the first that is meant for it."""
        return (self.scheme,) if self.scheme else BITS[self.bits or 4]


@dataclass(frozen=True)
class Convert:
    """Copy weights as floats."""

    dtype: str = option("keep", "Float type of the weights; keep is the source's own.", choices=DTYPES)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")

    @property
    def schemes(self) -> tuple[str, ...]:
        return (self.dtype,) if self.dtype in SCHEMES else ()


@dataclass(frozen=True)
class Export:
    """Where artifacts go and how their files are cut."""

    output: Path = option(  # noqa: RUF009 - a frozen field's description, not a shared default
        Path("dist"), "Folder for the artifacts, one subfolder a container.", flags=("-o",), metavar="DIR"
    )
    to: tuple[str, ...] = option(
        (), "Container to write; repeat for several. Default: all that can hold it.", listed="formats"
    )
    overwrite: bool = option(False, "Replace artifacts that an earlier run wrote.")
    name: str | None = option(None, "Model name in metadata and file names.", metavar="NAME")
    shard_size: str | None = option(
        None, "Largest file, e.g. 2GB; a larger artifact is cut into shards.", metavar="SIZE"
    )
    pre: str | None = option(None, "GGUF's tokenizer.ggml.pre, where it cannot be told.", metavar="NAME")
    layout: str = option(
        "optimum", "How ONNX files are called and placed: optimum or transformers.js.", choices=LAYOUTS
    )
    threads: int = option(0, "Worker threads; 0 takes one per core.", metavar="N")
    verify: bool = option(True, "Take a quick look at what was written, and record the verdict.")

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class Recipe:
    """Load `source`, apply every pass in turn, then `step`, write artifacts, and verify them.

    verify: how thoroughly, once they are written; None leaves it at the quick look.
    """

    source: Path
    step: Quantize | Convert
    export: Export
    passes: tuple[Pass, ...] = ()
    verify: VerifyOptions | None = None

    def to_dict(self) -> dict[str, Any]:
        """What decides the artifacts' bytes, for the manifest."""
        export = {key: getattr(self.export, key) for key in ("name", "shard_size", "pre", "layout")}
        return {
            **({"passes": [as_dict(step) for step in self.passes]} if self.passes else {}),
            type(self.step).__name__.lower(): to_dict(self.step),
            "export": export,
        }


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500M`, `1.5GiB`.  Raises UsageError for anything else."""
    lowered = text.strip().lower().removesuffix("b")
    digits = lowered.rstrip("kmgi")
    try:
        size = int(float(digits) * _UNITS[lowered[len(digits) :]])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{text!r} is not a size; write it as 2GB, 500MB or 1.5GiB") from None
    if size < 1 << 16:
        raise UsageError(f"{text!r} is too small for a file; the smallest is 64KiB")
    return size
