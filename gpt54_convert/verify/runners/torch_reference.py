"""The float model in torch: what every artifact is compared with."""

from __future__ import annotations

from gpt54_convert.forward.torch_model import TorchReference

__all__ = ["CONTAINERS", "INSTALL", "TorchReference"]

CONTAINERS: tuple[str, ...] = ()  # it runs checkpoints, of whatever container
NEEDS = ("torch", "transformers", "accelerate")
INSTALL = "pip install 'gpt54-convert[torch]'"
