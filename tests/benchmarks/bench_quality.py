"""Quality at a given size: ours beside llama.cpp's own quantizer, both judged by the same float32 arithmetic.

    python tests/benchmarks/bench_quality.py --ours int4 scheme=q4_k_m,method=rtn --peer Q4_K_M Q4_K_M+imatrix
    python tests/benchmarks/bench_quality.py --model smollm2 --against Q4_K_M+imatrix …

Every row is a finished artifact, loaded again and dequantized to float32; transformers runs it, so that no
runtime's own arithmetic (llama.cpp's costs 0.003–0.005 nats) hides what the weights lost.  Measured on text
that nobody calibrated on; intervals are 95 %, by a bootstrap over documents; the ratio's interval is paired.

An entry of --ours is a scheme, or KEY=VALUE pairs of `quantize`'s options, `to` (a container) and transforms
(rotate=all or rotate=values, awq=true, smooth=0.5).  Under w8a8 the inputs are rounded to 8 bits too.  One of
--peer is llama.cpp's name of a type, `+imatrix` and `+pure` where wanted.  --model: `embedded`, `smollm2`
(shuffled, see honest.py), or a float model's path.

Rows that measure sensitivities (budgets) share them: the first one's seconds include them, others' do not.
--kept FOLDER keeps finished rows and takes them from there the next time: clear it when the code has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/peers

import honest
import llama_quantizer

from gpt54_convert import data, loaders, pipeline
from gpt54_convert.budget import search
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.forward.documents import cut
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.transforms.awq import Awq
from gpt54_convert.transforms.rotate import Rotate
from gpt54_convert.transforms.smooth import Smooth
from gpt54_convert.verify import documents as docs
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.tally import Measured, Tally


@dataclass(frozen=True)
class Row:
    """One artifact: what it is, its weights' files, what they lost, how long it took to make."""

    name: str
    size_bytes: int
    bits_per_weight: float
    kl: Measured
    top1: Measured
    elapsed_s: float


class Meter:
    """The float model's answers to the held-out text, and how far an artifact is from them."""

    def __init__(self, source: Checkpoint, text: str, tokens: int, context: int, threads: int) -> None:
        self._threads = threads
        options = VerifyOptions(tokens=tokens, context=context)
        documents = cut(text, source, tokens, context)
        self._batches = list(docs.batches(documents, source, options))
        self.token_count = sum(len(document.tokens) for document in documents)
        self.document_count = len(documents)
        self._source = source
        self._kept: list[Floats] = []

    @property
    def _answers(self) -> list[Floats]:
        """The float model's, made when first needed."""
        if not self._kept:
            self._kept = list(self._run(self._source))
        return self._kept

    def _run(self, checkpoint: Checkpoint, int8_inputs: dict[str, int] | None = None) -> Iterator[Floats]:
        from gpt54_convert.forward.torch_model import TorchReference

        with TorchReference(
            checkpoint, self._threads, keep_bytes=4 << 30, int8_inputs=int8_inputs
        ) as reference:
            for batch in self._batches:
                yield reference.logits(batch)

    def figures(self, checkpoint: Checkpoint, activations: bool) -> dict[str, Measured]:
        """activations: whether what enters a matrix of codes is rounded to 8 bits, token by token."""
        coded = {name: tensor.columns for name, tensor in checkpoint.tensors.items() if tensor.grid}
        tally = Tally("logits")
        pairs: Iterator[tuple[Batch, Floats, Floats]] = zip(
            self._batches, self._answers, self._run(checkpoint, coded if activations else None), strict=True
        )
        for batch, answer, found in pairs:
            tally.add(batch, answer, found)
        return tally.figures()


class Bench:
    """Makes artifacts of one model and measures them."""

    def __init__(self, model: Path, args: argparse.Namespace) -> None:
        self._model, self._args = model, args
        self._source = loaders.load(model)
        self._count = self._source.parameter_count
        text = args.text.read_text(encoding="utf-8") if args.text else data.text("heldout")
        self.text_hash = hashlib.sha256(text.encode()).hexdigest()
        self.meter = Meter(self._source, text, args.tokens, args.context, args.threads)
        self._float: Path | None = None
        self._matrix: dict[str, Any] | None = None

    def row(self, kind: str, spec: str, work: Path) -> Row:
        """One row, measured or (--kept) found."""
        args = self._args
        about = (kind, spec, args.model, self.text_hash, args.tokens, args.context, args.calibration_tokens)
        name = hashlib.sha256(repr(about).encode()).hexdigest()[:16] + ".pickle"
        path = args.kept / name if args.kept else None
        if path is not None and path.exists():
            return pickle.loads(path.read_bytes())
        found = self.ours(spec, work) if kind == "ours" else self.peer(spec, work)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(found))
        return found

    def ours(self, spec: str, work: Path) -> Row:
        """An entry of --ours, quantized, loaded again and measured."""
        pairs = dict(part.split("=", 1) for part in spec.split(",")) if "=" in spec else {"scheme": spec}
        to = pairs.pop("to", "gguf")
        kinds = {field.name: field.type for field in fields(Quantize)}
        passes = _transforms(pairs)
        values = {key: _typed(value, str(kinds[key])) for key, value in pairs.items()}
        export = Export(output=work / "out", to=(to,), threads=self._args.threads, verify=False)
        started = time.monotonic()
        artifact = pipeline.run(Recipe(self._model, Quantize(**values), export, passes), Report())[0]
        elapsed = time.monotonic() - started
        weights = [p for p in artifact.files if p.suffix in (".gguf", ".safetensors", ".onnx", ".data")]
        path = weights[0] if to == "gguf" else artifact.folder
        return self._row(spec, path, sum(p.stat().st_size for p in weights), elapsed, "w8a8" in spec)

    def peer(self, spec: str, work: Path) -> Row:
        """An entry of --peer: the same float weights through llama.cpp's quantizer."""
        ftype, *extras = spec.split("+")
        matrix = self._importance() if "imatrix" in extras else None
        source, goal = self._float_gguf(work.parent), work / "peer.gguf"
        started = time.monotonic()
        llama_quantizer.quantize(source, goal, ftype, matrix, "pure" in extras, self._args.threads)
        elapsed = time.monotonic() - started
        return self._row(f"llama.cpp {spec}", goal, goal.stat().st_size, elapsed)

    def _row(self, name: str, path: Path, size: int, elapsed_s: float, activations: bool = False) -> Row:
        figures = self.meter.figures(loaders.load(path), activations)
        return Row(
            name, size, 8 * size / self._count, figures["kl_mean_nats"], figures["top1_agreement"], elapsed_s
        )

    def _float_gguf(self, folder: Path) -> Path:
        if self._float is None:
            export = Export(output=folder / "float", to=("gguf",), verify=False)
            self._float = pipeline.run(Recipe(self._model, Convert("float32"), export), Report())[0].files[0]
            self._float = next(p for p in (folder / "float").rglob("*.gguf"))
        return self._float

    def _importance(self) -> dict[str, Any]:
        if self._matrix is None:
            self._matrix = llama_quantizer.importance(self._source, self._args.calibration_tokens)
        return self._matrix


def _transforms(pairs: dict[str, str]) -> tuple[Any, ...]:
    """The passes that a spec names, taken out of it."""
    found: list[Any] = []
    scheme = pairs.get("scheme", "int4")
    if "rotate" in pairs:
        found.append(Rotate(residual=pairs.pop("rotate") == "all"))
    if pairs.pop("awq", ""):
        found.append(Awq(scheme))
    if "smooth" in pairs:
        found.append(Smooth(float(pairs.pop("smooth"))))
    return tuple(found)


def _typed(value: str, kind: str) -> Any:
    if "tuple" in kind:
        return tuple(value.split("+"))
    if "bool" in kind:
        return value.lower() in ("1", "true", "yes")
    for name, make in (("int", int), ("float", float), ("Path", Path)):
        if name in kind and "str" not in kind:
            return make(value)
    return value


def table(rows: list[Row], against: str | None) -> str:
    """Markdown; the ratio compares mean KL with the row called `against`."""
    base = next((row for row in rows if row.name in (against, f"llama.cpp {against}")), None)
    head = "| quantized as | bytes | bpw | mean KL, nats | 95 % | top-1 % | seconds |"
    lines = [
        head + (f" KL / {base.name} |" if base else ""),
        "|---|--:|--:|--:|--:|--:|--:|" + "--:|" * bool(base),
    ]
    for row in rows:
        low, high = np.quantile(row.kl.samples, (0.025, 0.975))
        line = f"| {row.name} | {row.size_bytes:,} | {row.bits_per_weight:.3f} | {row.kl.value:.4f} "
        line += f"| {low:.4f}–{high:.4f} | {100 * row.top1.value:.1f} | {row.elapsed_s:.0f} |"
        if base:
            low, high = np.quantile(row.kl.samples / base.kl.samples, (0.025, 0.975))
            line += f" {row.kl.value / base.kl.value:.3f} ({low:.3f}–{high:.3f}) |"
        lines.append(line)
    return "\n".join(lines)


def _share_studies() -> None:
    """Sensitivities of a model are measured once, not once a row."""
    made: dict[tuple[Path, str], Any] = {}

    class Shared(search.Study):
        def __new__(cls, checkpoint: Checkpoint, method: str, *rest: Any) -> Any:
            return made.setdefault((checkpoint.source.path, method), super().__new__(cls))

        def __init__(self, checkpoint: Checkpoint, *rest: Any) -> None:
            if not hasattr(self, "sensitivity"):
                super().__init__(checkpoint, *rest)

        def close(self) -> None:
            """Kept for the next row."""

    search.Study = Shared


@contextmanager
def _folder(parent: Path | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--ours", nargs="*", default=["int4", "q4_k_m"], metavar="SPEC")
    parser.add_argument("--peer", nargs="*", default=["Q4_0", "Q4_0+imatrix", "Q4_K_M", "Q4_K_M+imatrix"])
    parser.add_argument("--against", help="the row whose KL the others are divided by")
    parser.add_argument("--tokens", type=int, default=3072, help="held-out tokens")
    parser.add_argument("--calibration-tokens", type=int, default=16384, help="for llama.cpp's imatrix")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--text", type=Path, help="held-out text; default: the package's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kept", type=Path, help="folder of finished rows")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    _share_studies()
    model = {"embedded": data.model_path, "smollm2": honest.smollm2}.get(
        args.model, lambda: Path(args.model)
    )()
    bench = Bench(model, args)
    meter = bench.meter
    print(f"{args.model}: {meter.token_count:,} held-out tokens in {meter.document_count} documents of up to")
    print(f"{args.context}, text sha256 {bench.text_hash}; float32 arithmetic in torch\n", flush=True)
    rows = []
    with _folder() as work:
        for kind, spec in [("peer", spec) for spec in args.peer] + [("ours", spec) for spec in args.ours]:
            with _folder(work) as here:
                rows.append(bench.row(kind, spec, here))
            print(f"{rows[-1].name}: {rows[-1].kl.value:.4f}", file=sys.stderr, flush=True)
    print(table(rows, args.against), flush=True)
    if args.json:
        args.json.write_text(json.dumps([_plain(row) for row in rows], indent=1) + "\n")


def _plain(row: Row) -> dict[str, Any]:
    return {**vars(row), "kl": row.kl.to_dict(), "top1": row.top1.to_dict()}


if __name__ == "__main__":
    main()
