"""The text model inside a multimodal checkpoint: Gemma 3 from 4B up, LLaVA, Mistral 3.

Their config.json nests the text model's own config as `text_config`, and their weights stand under a prefix.
What runs here is text; the towers of other modalities are left out, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpt54_convert import archs
from gpt54_convert.archs import Architecture
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import ConvertError
from gpt54_convert.loaders._folder import SideFiles

_PREFIX = re.compile(r"^(model\.)?(language_model|text_model)\.")
# What the outer config says for the text model too, where the inner one does not.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")

Tensors = Mapping[str, LazyTensor]


def text_part(raw: Tensors, side: SideFiles) -> tuple[Tensors, SideFiles, tuple[str, ...]]:
    """Tensors and config of the text model, and a note; all unchanged where there is none of a known kind."""
    architecture = _architecture(side.config)
    if architecture is None:
        return raw, side, ()
    inner = side.config["text_config"]
    config = {key: side.config[key] for key in _SHARED if key in side.config}
    config |= {"architectures": [architecture.model_class], **inner}
    kept: dict[str, LazyTensor] = {}
    left: dict[str, int] = {}
    for name, tensor in raw.items():
        short = _PREFIX.sub("", name)
        canonical = architecture.canonical(short)
        if canonical is None or architecture.match(canonical):
            kept[short] = tensor.renamed(short)
        else:
            top = name.removeprefix("model.").split(".", 1)[0]
            left[top] = left.get(top, 0) + 1
    parts = ", ".join(f"{top} ({count} tensors)" for top, count in sorted(left.items()))
    note = f"only the text model ({inner['model_type']}) of this {side.config.get('model_type')} is read"
    return kept, replace(side, config=config), (note + (f"; left out: {parts}" if parts else ""),)


def _architecture(config: Mapping[str, Any]) -> Architecture | None:
    """That of the nested text model, if the whole is not described and its sizes are all there."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping) or archs.for_config(config) is not None:
        return None
    architecture = archs.for_config(inner)
    if architecture is None:
        return None
    try:
        architecture.sizes(inner)
    except (ConvertError, TypeError, ArithmeticError):
        return None  # it relies on defaults that only its library knows: names alone will do
    return architecture
