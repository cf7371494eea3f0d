"""The table of the embedded family: held-out perplexity and size of what embedded_family.sh made.

    python examples/embedded_family_table.py family --windows 128

The figure is that of docs/embedded-model.md: windows of the held-out novel, 96 tokens read by the encoder,
the next 160 scored. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from train_embedded_model import windows
from transformers import T5ForConditionalGeneration

from gpt54_convert import data

NAMES = ("pruned", "distilled", "scratch", "int4")


@torch.no_grad()
def loss(folder: Path, prefixes: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean loss in nats per token of the weights as stored, computed in float32."""
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for prefix, target in zip(prefixes.split(16), targets.split(16), strict=True):
        total += float(model(input_ids=prefix, labels=target).loss) * len(target)
    return total / len(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, help="folder that embedded_family.sh wrote")
    parser.add_argument("--windows", type=int, default=850, help="how many windows to score")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(data.model_path() / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(data.text("heldout")).ids)
    prefixes, targets = (part[: arguments.windows] for part in windows(ids))
    folders = {"teacher": data.model_path()}
    for tier in ("mini", "nano"):
        for name in NAMES:
            if (arguments.family / tier / name).exists():
                folders[f"{tier}, {name}"] = arguments.family / tier / name / "safetensors"
    print("| model | nats per token | perplexity | weights, bytes |\n|---|---:|---:|---:|")
    for name, folder in folders.items():
        nats = loss(folder, prefixes, targets)
        size = (folder / "model.safetensors").stat().st_size
        print(f"| {name} | {nats:.3f} | {math.exp(nats):.1f} | {size:,} |", flush=True)


if __name__ == "__main__":
    main()
