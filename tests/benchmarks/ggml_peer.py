"""`peers.ggml` for the benchmark scripts, which run without pytest's path settings."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.ggml import MISSING, TAKES_IMPORTANCE, available, dequantize, quantize

__all__ = ["MISSING", "TAKES_IMPORTANCE", "available", "dequantize", "quantize"]
