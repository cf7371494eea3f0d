"""Speed and memory of one artifact, measured by a process of its own: `python -m … ARTIFACT OPTIONS`.

A fresh process each time: peak memory is the process's, and no runtime disturbs another.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt54_convert import data
from gpt54_convert.errors import InputError
from gpt54_convert.sessions import Session, open_session
from gpt54_convert.sessions._options import Load

_FAILED = 3
FIGURES = ("load_s", "prompt_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes")


def measure(path: Path, load: Load) -> dict[str, Any]:
    """Load the artifact, read a prompt, write tokens; each timed.  Encoders only read."""
    started = time.perf_counter()
    session = open_session(path, load.threads)
    loaded = time.perf_counter() - started
    ids = _prompt(session, load.prompt_tokens)
    session.start(ids[:8])  # kernels and memory are set up by the first call
    started = time.perf_counter()
    session.start(ids)
    read = time.perf_counter() - started
    found = {"load_s": loaded, "prompt_tokens": len(ids), "prompt_tokens_per_s": len(ids) / read}
    if session.kind != "encoder":
        count = max(1, min(load.tokens, session.context - len(ids) - 1))
        started = time.perf_counter()
        for token in ids[:count] + [ids[0]] * max(0, count - len(ids)):
            session.step(token)
        found["decode_tokens_per_s"] = count / (time.perf_counter() - started)
    session.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "runtime": session.runtime, "peak_memory_bytes": peak}


def _prompt(session: Session, count: int) -> list[int]:
    """Real text of `count` tokens, or as many as the model has room for."""
    ids = session.encode(data.text("heldout")[: 16 * count])
    return ids[: max(1, min(count, session.context // 2))]


def in_process_of_its_own(path: Path, load: Load) -> dict[str, Any]:
    """`measure`, elsewhere.  Raises InputError with the other process's own words."""
    words = [sys.executable, "-m", __name__, str(path), json.dumps(asdict(load))]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise InputError(f"{path}: cannot be measured: {said[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over runs of one artifact."""
    figures = {name: statistics.median(run[name] for run in runs) for name in FIGURES if name in runs[0]}
    return {"runtime": runs[0]["runtime"], "prompt_tokens": runs[0]["prompt_tokens"], **figures}


def main() -> None:
    """The other process."""
    try:
        print(json.dumps(measure(Path(sys.argv[1]), Load(**json.loads(sys.argv[2])))))
    except Exception as error:  # whatever it is, the caller prints it as one sentence
        print(error, file=sys.stderr)
        sys.exit(_FAILED)


if __name__ == "__main__":
    main()
