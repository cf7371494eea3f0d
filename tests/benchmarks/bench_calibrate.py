"""Peak memory and CPU time of a calibrated job on some layers of a large synthetic model.

`python tests/benchmarks/bench_calibrate.py [--layers 2] [--vocabulary 128256] [-- OPTIONS of quantize]`.
Width 2048, feed-forward 8192, a head of its own: the shape of a Llama of 1.2 B, which has 16 layers.  Memory
should hardly depend on how many there are; only a whole model shows whether that is so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("options", nargs="*", default=["--bits", "4", "--to", "gguf"])
    given = parser.parse_args()
    synthetic.SHAPES["calibrate"] = (2048, 8192, given.layers, 32, 8)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        count = synthetic.write("calibrate", model, vocabulary=given.vocabulary)
        words = ["quantize", str(model), *given.options, "--no-verify", "-q", "-o", f"{temporary}/out"]
        process = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "gpt54_convert", *words])
        _, status, usage = os.wait4(process, 0)
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{count / 1e6:.0f} M weights, {' '.join(given.options)}: exit {os.waitstatus_to_exitcode(status)}, "
    )
    print(f"{cpu:.0f} CPU seconds, peak {usage.ru_maxrss * 1024 / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
