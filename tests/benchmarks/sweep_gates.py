"""Honest artifacts against the default gates: every scheme of every container, exported and verified.

`python tests/benchmarks/sweep_gates.py [MODEL …] [--tokens N] [--scheme NAME …]`; without MODEL the embedded
model.  A line an artifact: bits per weight of its layers, figures, and what the gates say; ends with 1 where
one does not pass.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpt54_convert import data
from gpt54_convert.core.report import Report
from gpt54_convert.errors import ConvertError
from gpt54_convert.pipeline import Artifact, run
from gpt54_convert.plan import containers
from gpt54_convert.quantize.schemes import SCHEMES
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.verify import verify
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.verdict import PASS, Verdict

FLOATS = ("float32", "float16", "bfloat16")


def export(model: Path, name: str, container: str, folder: Path) -> Artifact | None:
    """The artifact, or None where this container cannot hold the scheme for this model."""
    step = Convert(dtype=name) if name in FLOATS else Quantize(scheme=name)
    try:
        return run(Recipe(model, step, Export(output=folder, to=(container,), verify=False)), Report())[0]
    except ConvertError:
        return None


def sweep(model: Path, names: list[str], options: VerifyOptions) -> Iterator[tuple[str, str, Verdict, float]]:
    """(scheme, container, verdict, seconds) of every artifact that can be made."""
    for name in names:
        for container in containers():
            with tempfile.TemporaryDirectory() as folder:
                artifact = export(model, name, container, Path(folder))
                if artifact is not None:
                    started = time.monotonic()
                    verdict = verify(artifact.folder, model, options)
                    yield name, container, verdict, time.monotonic() - started


def line(name: str, container: str, verdict: Verdict, elapsed_s: float) -> str:
    def figure(*keys: str) -> float:
        return next((verdict.figures[key]["value"] for key in keys if key in verdict.figures), float("nan"))

    bits = verdict.about.get("bits_per_weight") or float("nan")
    text = f"{name:12} {container:12} {bits:6.3f} {figure('kl_mean_nats', 'hidden_nmse'):10.3g} "
    text += f"{figure('top1_agreement', 'cosine_mean'):8.4f} {elapsed_s:6.1f} s  {verdict.outcome}"
    for check in verdict.checks:
        if check.outcome != PASS or "small model" in check.detail or "floor" in check.detail:
            text += f"\n      {check.outcome}: {check.kind} {check.name}: {check.detail}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--scheme", action="append")
    given = parser.parse_args()
    options = VerifyOptions(tokens=given.tokens, context=128, threads=1)
    names = given.scheme or [*FLOATS, *(name for name in SCHEMES if name not in FLOATS)]
    bad = 0
    for model in given.models or [data.model_path()]:
        print(f"# {model}")
        for row in sweep(model, names, options):
            print(line(*row), flush=True)
            bad += row[2].outcome != PASS
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
