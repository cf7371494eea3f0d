"""gptq's codes, whose scales are then trained through the whole model (`calibrate/tune.py`)."""

from __future__ import annotations

from gpt54_convert.quantize.solvers import gptq

DESCRIPTION = "gptq, then all scales within layers trained together on the float model's answers"
NEEDS = "moments"
THEN = "tune"  # what a job does once all tensors are solved
solve = gptq.solve
