"""Whether the output head is the embedding: decided from the weights themselves, then said plainly.

Configs are unreliable here: `.bin` files store a tied head twice, and transformers 5 changed what T5's
`tie_word_embeddings` means.  After loading, a head that is there is untied and one that is not there is
tied, and config.json says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt54_convert.archs import Architecture
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError

Tensors = dict[str, LazyTensor]


def settle_tying(
    tensors: Tensors, config: Mapping[str, Any], architecture: Architecture
) -> tuple[Tensors, Mapping[str, Any]]:
    """Drop a head that only repeats the embedding, and make config.json agree with what remains.

    Raises InputError where the config promises a head of its own, but the weights have none.
    """
    names = {weight.role: weight.hf + weight.hf_suffix for weight in architecture.weights}
    head, embedding = names.get("head"), names.get("embed")
    if head is None or embedding not in tensors:
        return tensors, config
    if architecture.kind == "encoder-decoder":
        return _settle_t5(tensors, config, head, embedding)
    said = config.get("tie_word_embeddings")
    tied = architecture.tied if said is None else bool(said)
    if tied and head in tensors:
        if equal(tensors[head], tensors[embedding]):
            return _without(tensors, head), config
        # transformers 5 keeps both too when they differ, transformers 4 would drop the head without a word
        return tensors, {**config, "tie_word_embeddings": False}
    if not tied and head not in tensors and _needs_head(config):
        raise InputError(
            f"tensor {head}: missing, although config.json says the head is not tied to the embedding; "
            'set "tie_word_embeddings": true there if it should be, else get the weights again'
        )
    return tensors, config


def _settle_t5(
    tensors: Tensors, config: Mapping[str, Any], head: str, embedding: str
) -> tuple[Tensors, Mapping[str, Any]]:
    """T5: a tied model scales the decoder's output by width**-0.5, an untied one (v1.1) does not.

    transformers 4 decides both from `tie_word_embeddings`.  transformers 5 always ties unless the weights
    hold a head of their own, and decides the scaling from `tie_word_embeddings` or `scale_decoder_outputs`.
    We write what both understand alike: tied and scaled without a head, or untied and unscaled with one.
    """
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    own = head in tensors and not equal(tensors[head], tensors[embedding])
    config = {key: value for key, value in config.items() if key != "scale_decoder_outputs"}
    if own and scaled:
        raise InputError(
            f"tensor {head}: differs from the embedding, although config.json says that they are tied; "
            'set "tie_word_embeddings": false there, or remove the tensor'
        )
    if scaled:
        return _without(tensors, head), {**config, "tie_word_embeddings": True}
    if head not in tensors:
        # Tied but unscaled (made by transformers 5): only a head that repeats the embedding says so.
        tensors = {**tensors, head: tensors[embedding].renamed(head)}
    return tensors, {**config, "tie_word_embeddings": False}


def _needs_head(config: Mapping[str, Any]) -> bool:
    classes = config.get("architectures")
    return isinstance(classes, list) and any(
        str(name).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in classes
    )


def _without(tensors: Tensors, name: str) -> Tensors:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def equal(first: LazyTensor, second: LazyTensor) -> bool:
    """True where two tensors hold the same values; read in chunks, up to the first that differs."""
    if first.shape != second.shape or first.dtype != second.dtype or first.grid != second.grid:
        return False
    if first.read is second.read:
        return True
    return all(
        np.array_equal(first.rows(start, stop), second.rows(start, stop)) for start, stop in first.chunks()
    )
