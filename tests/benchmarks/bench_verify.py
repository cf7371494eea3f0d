"""Peak memory and time of `verify` on a large synthetic model.

`python tests/benchmarks/bench_verify.py [SIZE] [--folder DIR] [--level outputs] [--container gguf]`; SIZE is
a key of synthetic.SHAPES (billions of parameters, default 1).  Few tokens: what counts here is memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import synthetic

FEW = ("--tokens", "512", "--context", "64", "--threads", "1")


def measured(*words: str) -> tuple[int, int, float]:
    """(exit code, peak resident bytes, seconds) of one command."""
    started = time.monotonic()
    process = os.spawnv(
        os.P_NOWAIT, sys.executable, [sys.executable, "-m", "gpt54_convert", *map(str, words)]
    )
    _, status, usage = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", default="1", choices=synthetic.SHAPES)
    parser.add_argument("--folder", type=Path, help="where the model is, or will be, kept")
    parser.add_argument("--level", default="outputs")
    parser.add_argument("--container", default="gguf")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = given.folder or Path(temporary) / "model"
        if not model.exists():
            synthetic.write(given.size, model)
        out = Path(temporary) / "out"
        quantize = ("quantize", model, "--bits", "4", "--fast", "--to", given.container, "-o", out, "-q")
        code, peak, seconds = measured(*quantize)
        print(f"quantize, verified: exit {code}, {seconds:.0f} s, peak {peak / 1e6:.0f} MB", flush=True)
        code, peak, seconds = measured("verify", out / given.container, "--level", given.level, *FEW)
        print(f"verify --level {given.level}: exit {code}, {seconds:.0f} s, peak {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
