"""Whole commands: seconds and peak memory of `quantize` against llama.cpp's quantizer on the same model.

    python tests/benchmarks/bench_command.py --sizes 0.1 1 7 --schemes int4 q4_k_m

Every run is a process of its own, measured by the operating system (wait4); ours reads safetensors, llama.cpp
the bfloat16 GGUF of the same weights (made by us, not timed).  The ratio is theirs / ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ("0.1", "0.5", "1", "3", "7")
FTYPES = {
    "int4": 2,
    "int8": 7,
    "q2_k": 10,
    "q3_k_m": 12,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
}
_PEER = """
import ctypes, sys, llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *a: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def make(size: str, folder: Path) -> int:
    """A synthetic model in `folder`, made by another process: this one must stay small.

    The peak memory that wait4 gives a child starts at what its parent held when it was started.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import synthetic, pathlib; "
    code += f"print(synthetic.write({size!r}, pathlib.Path({str(folder)!r})))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident megabytes of one process."""
    started = time.monotonic()
    process = os.posix_spawn(
        command[0],
        command,
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def ours(source: Path, scheme: str, output: Path, to: str, threads: int) -> tuple[float, float, float]:
    shutil.rmtree(output, ignore_errors=True)
    choice = ["--dtype", scheme] if scheme in ("bfloat16", "float16") else ["--scheme", scheme]
    verb = "convert" if "--dtype" in choice else "quantize"
    command = [sys.executable, "-m", "gpt54_convert", verb, str(source), *choice, "--to", to, "-q"]
    return measure([*command, "-o", str(output), "--threads", str(threads)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["0.1", "1"], choices=SIZES)
    parser.add_argument("--schemes", nargs="+", default=["int4", "q4_k_m"], choices=list(FTYPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    print("size   parameters  scheme   ours: s   CPU s  peak MB | llama.cpp: s   CPU s  peak MB | CPU ratio")
    for size in args.sizes:
        work = Path(tempfile.mkdtemp())
        try:
            count = make(size, work / "model")
            if not args.no_peer:
                ours(work / "model", "bfloat16", work / "float", "gguf", args.threads)
            for scheme in args.schemes:
                compare(work, size, count, scheme, args)
        finally:
            shutil.rmtree(work)


def compare(work: Path, size: str, count: int, scheme: str, args: argparse.Namespace) -> None:
    """Alternating runs of both programs; medians are printed."""
    mine, theirs = [], []
    for _ in range(args.runs):
        mine.append(ours(work / "model", scheme, work / "out", "gguf", args.threads))
        if not args.no_peer:
            source = next((work / "float" / "gguf").glob("*.gguf"))
            arguments = [str(source), str(work / "peer.gguf"), str(FTYPES[scheme]), str(args.threads)]
            theirs.append(measure([sys.executable, "-c", _PEER, *arguments]))
    own = [statistics.median(column) for column in zip(*mine, strict=True)]
    line = f"{size:>4} B {count:>12,}  {scheme:<8} {own[0]:>7.2f} {own[1]:>7.2f} {own[2]:>8.0f}"
    if theirs:
        peer = [statistics.median(column) for column in zip(*theirs, strict=True)]
        line += f" | {peer[0]:>12.2f} {peer[1]:>7.2f} {peer[2]:>8.0f} | {peer[1] / own[1]:.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
