"""Decode speed of 4-bit ONNX: our export and onnxruntime-genai's own builder on the same Llama.

    python -m venv --system-site-packages peer && peer/bin/pip install onnxruntime-genai
    python tests/benchmarks/bench_onnx_decode.py --peer peer/bin/python

One sequence, greedy, a prompt of 128 tokens, then 64 more, which are timed.  Four runners, each a process of
the environment `--peer` (so that all have the same ONNX Runtime), loaded once and then run in turns.  A
figure is the median of the rounds; a ratio is the median of the ratios to the builder's graph in its own loop
in the same round.  On a busy machine CPU seconds of one thread say more than wall seconds: ratios of both.
Each graph also runs in the other's loop, which parts the graph's cost from the loop's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
import synthetic

VOCABULARY = 16_384
# Reads {"folder", "threads", "prompt", "tokens"} from its first line; answers each further line with seconds.
_COMMON = """
import json, sys, time
import numpy as np
feed = json.loads(sys.stdin.readline())
prompt, count, threads = feed["prompt"], feed["tokens"], feed["threads"]
def serve(once):
    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(once()), flush=True)
"""
_GENAI = (
    _COMMON
    + """
import onnxruntime_genai as og
config = og.Config(feed["folder"])
own = {"intra_op_num_threads": threads}
config.overlay(json.dumps({"model": {"decoder": {"session_options": own}}}))
model = og.Model(config)
length = len(prompt) + count + 1
def once():
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    generator.generate_next_token()
    started = time.perf_counter(), time.process_time()
    for _ in range(count):
        generator.generate_next_token()
    return time.perf_counter() - started[0], time.process_time() - started[1]
serve(once)
"""
)
_SESSIONS = (
    _COMMON
    + """
from pathlib import Path
from gpt54_convert.sessions import open_session
session = open_session(Path(feed["folder"]), threads)
def once():
    token = int(session.start(prompt).argmax())
    started = time.perf_counter(), time.process_time()
    for _ in range(count):
        token = int(session.step(token).argmax())
    return time.perf_counter() - started[0], time.process_time() - started[1]
serve(once)
"""
)
RUNNERS = {
    "builder's, onnxruntime-genai": (_GENAI, "builder"),
    "ours, onnxruntime-genai": (_GENAI, "ours"),
    "ours, our loop": (_SESSIONS, "ours"),
    "builder's, our loop": (_SESSIONS, "builder"),
}


def export(python: str, model: Path, work: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Both artifacts of the model."""
    output = work / "out"
    keep = [word for entry in args.keep for word in ("--keep", entry)]
    if not output.exists():
        command = [sys.executable, "-m", "gpt54_convert", "quantize", str(model), "--scheme", args.scheme]
        command += [
            "-q",
            "--to",
            "onnx",
            "-o",
            str(output),
            "--threads",
            str(args.threads),
            "--no-verify",
            *keep,
        ]
        subprocess.run(command, check=True)
    built = work / "builder"
    if not built.exists():
        command = [python, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-o", str(built)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        name_sizes(built / "model.onnx", model / "config.json")
        for name in ("config.json", "tokenizer.json"):  # what our loop reads besides the graph
            shutil.copyfile(model / name, built / name)
    return {"ours": output / "onnx", "builder": built}


def name_sizes(path: Path, config: Path) -> None:
    """Say how large a head is: the builder leaves it open, and our loop asks the graph."""
    size = json.loads(config.read_text())["head_dim"]
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[3].dim_value = size
    onnx.save(model, path)


@contextmanager
def runner(python: str, script: str, feed: dict[str, object]) -> Iterator[subprocess.Popen[str]]:
    """A runner that has loaded its model and run once."""
    process = subprocess.Popen(
        [python, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if ask(process, json.dumps(feed)) != "ready":
            raise SystemExit("a runner could not start")
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def compare(python: str, folders: dict[str, Path], args: argparse.Namespace) -> None:
    """Runs in turns, and what came of them."""
    prompt = [(7919 * i) % (VOCABULARY - 300) + 300 for i in range(args.prompt)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNNERS}
    with ExitStack() as stack:
        running = {}
        for name, (script, folder) in RUNNERS.items():
            feed = {
                "folder": str(folders[folder]),
                "threads": args.threads,
                "prompt": prompt,
                "tokens": args.tokens,
            }
            running[name] = stack.enter_context(runner(python, script, feed))
        for _ in range(args.rounds):
            for name, process in running.items():
                wall, cpu = json.loads(ask(process, "go"))
                times[name].append((wall, cpu))
    peer = times[next(iter(RUNNERS))]
    print(f"{'graph, loop':<30} tokens/s    ratio  CPU ms/token    ratio")
    for name, own in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*own, strict=True))
        faster, lighter = (
            statistics.median(theirs[i] / mine[i] for theirs, mine in zip(peer, own, strict=True))
            for i in (0, 1)
        )
        rate = args.tokens / wall
        print(f"{name:<30} {rate:>8.1f} {faster:>8.2f} {1000 * cpu / args.tokens:>13.1f} {lighter:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", default=sys.executable, help="Python with onnxruntime-genai and what we need"
    )
    parser.add_argument("--size", default="0.2", choices=synthetic.SHAPES)
    parser.add_argument("--scheme", default="int4", help="ours; the builder's is int4 in groups of 32")
    parser.add_argument("--keep", action="append", default=[], help="ROLE=GRID, as quantize has it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep the model and both artifacts here")
    args = parser.parse_args()
    work = args.folder or Path(tempfile.mkdtemp())
    try:
        model = work / "model"
        if not model.exists():
            work.mkdir(parents=True, exist_ok=True)
            synthetic.write(args.size, model, vocabulary=VOCABULARY)
            config = json.loads((model / "config.json").read_text())
            config["max_position_embeddings"] = 4096  # the tiny model that it was made from has 256
            (model / "config.json").write_text(json.dumps(config))
        compare(args.peer, export(args.peer, model, work, args), args)
    finally:
        if args.folder is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
