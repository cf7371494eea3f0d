"""Speed and error of the grids with one level of scales, beside ggml's own quantizer, on one core.

    python tests/benchmarks/bench_flat.py [q4_0 int4-g128 …] [--rows 512] [--columns 2048] [--runs 9]

Ours and ggml's alternate within one process; speeds are medians of CPU time, in million weights per second.
Ours includes packing into the same bytes where there is a GGUF type.  ggml's search is its path with an
importance matrix (Q8_0 and MXFP4 have none: its plain path again).  The error is relative RMS, weighted where
the row says so.  Machine code is compiled before the clock starts; `compile` is that CPU time, about 0 where
the cache on disk had it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import ggml_peer as ggml
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
FLATS = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"]
NAMES = [*FLATS, "int4-g128", "int4-g128-asym", "int8-channel"]


class Job(NamedTuple):
    """A solver's name, and the importances that it gets."""

    method: str
    importance: Array | None


def weights(rows: int, columns: int) -> Array:
    """Heavy-tailed weights with rows and columns of unlike scale, as trained models have them."""
    generator = np.random.default_rng(0)
    values = generator.standard_t(6, (rows, columns)) * 0.02
    values *= np.exp(generator.normal(0, 0.4, (rows, 1)) + generator.normal(0, 0.2, (1, columns)))
    return values.astype(np.float32)


def cpu_s(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def relative_rms(weight: Array, values: Array, importance: Array | None) -> float:
    """sqrt(Σ importance · error² / Σ importance · weight²)."""
    each = np.ones(weight.shape[1]) if importance is None else importance.astype(np.float64)
    error = np.square(values.astype(np.float64) - weight) @ each
    return float(np.sqrt(error.sum() / (np.square(weight.astype(np.float64)) @ each).sum()))


def compare(name: str, job: Job, weight: Array, runs: int) -> str:
    """One row of the table."""
    from gpt54_convert.packing.ggml import ggml_type, pack
    from gpt54_convert.quantize.encode import solver
    from gpt54_convert.quantize.grids import grid

    target, solve = grid(name), solver(job.method)
    type_name = ggml_type(target)

    def ours() -> object:
        q = solve(weight, target, job.importance)
        return pack(q) if type_name else q

    compile_s = cpu_s(ours)
    peer = None if type_name is None else ggml.quantize(weight, type_name, job.importance)
    times: list[tuple[float, float]] = []
    for _ in range(runs):
        theirs = (
            0.0 if peer is None else cpu_s(lambda: ggml.quantize(weight, type_name, job.importance, peer))
        )
        times.append((cpu_s(ours), theirs))
    million = weight.size / 1e6
    ours_s, theirs_s = (statistics.median(each) for each in zip(*times, strict=True))
    error = relative_rms(weight, solve(weight, target, job.importance).dequantize(), job.importance)
    line = (
        f"{name:15} {job.method:6} {'-' if job.importance is None else 'weighted':9}{million / ours_s:6.0f}"
    )
    if peer is None:
        return f"{line} {'':16}{error:9.5f} {'':16}{compile_s:8.2f}"
    their_error = relative_rms(weight, ggml.dequantize(peer, type_name, weight.shape), job.importance)
    speeds = f"{million / theirs_s:7.1f} {theirs_s / ours_s:6.1f}×"
    return f"{line} {speeds} {error:9.5f} {their_error:8.5f} {error / their_error:6.3f} {compile_s:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    if not ggml.available():
        raise SystemExit(ggml.MISSING)
    weight = weights(options.rows, options.columns)
    importance = np.exp(np.random.default_rng(1).normal(0, 1, options.columns)).astype(np.float32)
    print("                                 M weights/s and core         relative RMS error")
    print("grid            method           ours    ggml   ratio      ours     ggml  ratio  compile")
    for name in options.names:
        for job in (Job("rtn", None), Job("search", None), Job("search", importance)):
            print(compare(name, job, weight, options.runs), flush=True)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
