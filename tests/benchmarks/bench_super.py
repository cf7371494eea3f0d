"""Speed and error of the superblock grids beside ggml's own quantizer, on one core.

    python tests/benchmarks/bench_super.py [q4_k …] [--rows 512] [--columns 2048] [--runs 7]

Ours and ggml's alternate within one process; speeds are medians of CPU time.  The error is relative RMS,
weighted by the importances where the line says so.  The machine code is compiled before the clock starts;
`compile` is that time, 0 where the cache on disk had it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import ggml_peer as ggml
import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.grids import GRIDS, SUPER, grid
from gpt54_convert.quantize.kernels.superblock import rtn, search

Array = NDArray[np.float32]


def weights(kind: str, rows: int, columns: int) -> Array:
    """Weights [rows, columns]: Gaussian, Student-t (`heavy`), or with rows and columns of unlike scale."""
    generator = np.random.default_rng(0)
    if kind == "heavy":
        return generator.standard_t(4, (rows, columns)).astype(np.float32)
    values = generator.standard_normal((rows, columns))
    if kind == "real":
        values *= 0.02 * np.exp(generator.normal(0, 0.5, (rows, 1)) + generator.normal(0, 0.3, (1, columns)))
        values[:, generator.integers(0, columns, columns // 100)] *= 6
    return values.astype(np.float32)


def relative_rms(weight: Array, values: Array, importance: Array | None) -> float:
    """sqrt(Σ importance · error² / Σ importance · weight²)."""
    each = np.ones(weight.shape[1]) if importance is None else importance.astype(np.float64)
    error = np.square(values.astype(np.float64) - weight) @ each
    return float(np.sqrt(error.sum() / (np.square(weight.astype(np.float64)) @ each).sum()))


def cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, kind: str, importance: Array | None, options: argparse.Namespace) -> str:
    """One line: median speeds in million weights per second of one core, their ratio, both errors."""
    weight = weights(kind, options.rows, options.columns)
    on = grid(name)
    theirs = ggml.quantize(weight, name, importance)
    ours_s, theirs_s, rtn_s = [], [], []
    for _ in range(options.runs):
        ours_s.append(cpu_s(lambda: search(weight, on, importance)))
        theirs_s.append(cpu_s(lambda: ggml.quantize(weight, name, importance, theirs)))
        rtn_s.append(cpu_s(lambda: rtn(weight, on, importance)))
    million = weight.size / 1e6
    fast, slow, plain = (million / statistics.median(each) for each in (ours_s, theirs_s, rtn_s))
    our_error = relative_rms(weight, search(weight, on, importance).dequantize(), importance)
    their_error = relative_rms(weight, ggml.dequantize(theirs, name, weight.shape), importance)
    weighted = "-" if importance is None else "weighted"
    speeds = f"{fast:6.0f} {slow:7.1f} {fast / slow:6.1f}×"
    errors = f"{our_error:9.5f} {their_error:8.5f} {our_error / their_error:6.3f}"
    return f"{name:7} {kind:6} {weighted:9}{speeds} {errors} {plain:7.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=[n for n, g in GRIDS.items() if g.kind == SUPER])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    if not ggml.available():
        raise SystemExit(ggml.MISSING)
    importance = np.exp(np.random.default_rng(1).normal(0, 1.5, options.columns)).astype(np.float32)
    print("grid    weights importance  ours    ggml   ratio    error     ggml   ratio     rtn   (speeds M/s)")
    for name in options.names:
        few = weights("gauss", 1, 256)
        compile_s = [cpu_s(lambda: solver(few, grid(name))) for solver in (search, rtn)]  # noqa: B023
        for kind in ("gauss", "heavy", "real"):
            for chosen in (None, importance):
                print(compare(name, kind, chosen, options), flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{'':7} compile: search {compile_s[0]:.1f} s, rtn {compile_s[1]:.1f} s; peak RSS {peak:.0f} MB"
        )


if __name__ == "__main__":
    main()
