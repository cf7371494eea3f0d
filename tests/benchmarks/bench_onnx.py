"""The 4-bit ONNX export of a large Llama: seconds and peak memory, tracing included.

    python tests/benchmarks/bench_onnx.py --sizes 0.1 1

Every run is a process of its own, measured by the operating system (wait4).  The exporter's own check of the
graphs is included; verifying the artifact beside the float model afterwards is only with `--verify`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench_command import SIZES, make, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["0.1", "1"], choices=SIZES)
    parser.add_argument("--scheme", default="int4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--verify", action="store_true", help="verify what was written, as quantize does by default"
    )
    parser.add_argument("--folder", type=Path, help="keep models and artifacts here")
    args = parser.parse_args()
    print("size   parameters  scheme       s    CPU s  peak MB  artifact MB")
    for size in args.sizes:
        work = args.folder or Path(tempfile.mkdtemp())
        try:
            model, output = work / f"model-{size}", work / f"out-{size}"
            count = make(size, model)
            command = [sys.executable, "-m", "gpt54_convert", "quantize", str(model), "--scheme", args.scheme]
            command += ["--to", "onnx", "-q", "-o", str(output), "--threads", str(args.threads)]
            command += [] if args.verify else ["--no-verify"]
            seconds, cpu, peak = measure(command)
            written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
            print(
                f"{size:>4} B {count:>12,}  {args.scheme:<8} {seconds:>6.0f} {cpu:>8.0f} {peak:>8.0f} "
                f"{written / 1e6:>12.0f}",
                flush=True,
            )
        finally:
            if args.folder is None:
                shutil.rmtree(work)


if __name__ == "__main__":
    main()
