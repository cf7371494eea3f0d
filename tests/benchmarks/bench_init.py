"""Drawing models of the family: seconds and peak memory of `init`, each in a process of its own.

    python tests/benchmarks/bench_init.py --tiers nano mini full --output /a/disk/with/room

full takes 13.4 GB of disk while it runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench_command import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiers", nargs="+", default=["nano", "mini"], choices=["nano", "mini", "full"])
    parser.add_argument("--output", type=Path, default=None, help="folder to write below")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'tier':<6} {'GB':>6} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}")
    for tier in arguments.tiers:
        folder = Path(tempfile.mkdtemp(dir=arguments.output))
        try:
            words = ["init", "--tier", tier, "-q", "-o", str(folder), "--threads", str(arguments.threads)]
            wall, cpu, peak = measure([sys.executable, "-m", "gpt54_convert", *words])
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        finally:
            shutil.rmtree(folder)
        print(f"{tier:<6} {size / 1e9:>6.2f} {wall:>8.1f} {cpu:>8.1f} {peak:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
