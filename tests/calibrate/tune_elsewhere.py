"""Tune one model on the processor and on another device, and say how both went; see test_tune_on_a_device.

`tune_elsewhere.py KIND GRID FOLDER KEPT`; KEPT: bytes of weights that may be kept.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import other_device
import tiny
import torch
from test_tune import Heard, setup

from gpt54_convert.calibrate import tune
from gpt54_convert.forward.torch_model import TorchReference


def main(kind, target, folder, kept):
    _registered = other_device.register()
    tune._STEPS = 6
    tune.TorchReference = partial(TorchReference, keep_bytes=int(kept))
    found, said = [], []
    for name in ("cpu", other_device.NAME):
        checkpoint, batches, solution, store = setup(tiny.make(kind)[1], Path(folder) / name, target)
        tune.fastest = partial(torch.device, name)
        tune.tune(solution, store, checkpoint, batches[:3], heard := Heard())
        said.append(heard.details + heard.notes)
        scales = [solution.store.load(*each).scale.ravel() for each in sorted(solution.inner.items())]
        found.append(np.concatenate(scales).astype(float))
    moved = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    products = sum(times for name, times in other_device.ran.items() if name.endswith("mm"))
    print(json.dumps({"said": said, "moved": moved, "products": products}))


if __name__ == "__main__":
    main(*sys.argv[1:])
