"""How each kind of model is called from ONNX: its graphs, their inputs and outputs by optimum's names.

A call is a thin wrapper around transformers' own `forward`: it packs flat inputs into the caches that
transformers wants, and unpacks what it answers.  The shapes of keys and values are asked of the model itself,
by running it once on fake tensors; no table of head counts and sizes is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache, EncoderDecoderCache

# Sizes of the samples that graphs are traced with: none is 0, 1 or equal to another.
ROWS, STEPS, PAST, SOURCE = 2, 3, 5, 7
Axes = dict[int, str]
Tensors = dict[str, torch.Tensor]
_TOKENS: Axes = {0: "batch_size", 1: "sequence_length"}
_ENCODER: Axes = {0: "batch_size", 1: "encoder_sequence_length"}
_DECODER: Axes = {0: "batch_size", 1: "decoder_sequence_length"}


class Call(torch.nn.Module):
    """One graph: a model, and how it is called.

    samples: inputs by name, in the graph's order.  input_axes, output_axes: the free axes of each by name.
    """

    stem = "model"

    def __init__(self, model: Any, samples: Tensors, input_axes: dict[str, Axes]) -> None:
        super().__init__()
        self.model = model
        self.samples = samples
        self.input_axes = input_axes
        self.output_axes: dict[str, Axes] = {}

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError


def of(model: Any, kind: str, mode: FakeTensorMode) -> list[Call]:
    """The calls of a model of that kind (`decoder`, `encoder`, `encoder-decoder`)."""
    if kind == "encoder":
        return [_Encoder(model)]
    if kind == "decoder":
        return [_Decoder(model, _cache_of(model, _fake(mode, _prompt()), mode))]
    states = _states(model, mode)
    feed = {"decoder_input_ids": _ids(ROWS, STEPS), "attention_mask": _mask(ROWS, SOURCE)}
    caches = _cache_of(model, {**_fake(mode, feed), "encoder_outputs": (states,)}, mode)
    hidden = torch.zeros(states.shape, dtype=states.dtype)
    return [_SourceEncoder(model), _FirstStep(model, hidden, caches), _NextStep(model, caches)]


class _Decoder(Call):
    """Tokens, mask, positions and past -> logits and the past with them."""

    def __init__(self, model: Any, cache: DynamicCache) -> None:
        samples = {
            "input_ids": _ids(ROWS, STEPS),
            "attention_mask": _mask(ROWS, PAST + STEPS),
            "position_ids": torch.arange(STEPS).repeat(ROWS, 1),
        }
        axes = dict.fromkeys(samples, _TOKENS)
        axes["attention_mask"] = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
        past = _past_samples(cache, "")
        before: Axes = {0: "batch_size", 2: "past_sequence_length"}
        after: Axes = {0: "batch_size", 2: "past_sequence_length + sequence_length"}
        super().__init__(model, {**samples, **past}, {**axes, **dict.fromkeys(past, before)})
        self.output_axes = {"logits": _TOKENS, **{_present(name): after for name in past}}

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        output = self.model(
            input_ids=feed["input_ids"],
            attention_mask=feed["attention_mask"],
            position_ids=feed["position_ids"],
            past_key_values=_cache(feed, ""),
            use_cache=True,
        )
        return (output.logits, *_flat(output.past_key_values))


class _Encoder(Call):
    """Tokens, mask and, where a model has them, token types -> hidden states."""

    def __init__(self, model: Any) -> None:
        samples = {
            "input_ids": _ids(ROWS, STEPS),
            "attention_mask": _mask(ROWS, STEPS),
        }
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            samples["token_type_ids"] = torch.zeros(ROWS, STEPS, dtype=torch.int64)
        super().__init__(model, samples, dict.fromkeys(samples, _TOKENS))
        self.output_axes = {"last_hidden_state": _TOKENS}

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        return (self.model(**feed).last_hidden_state,)


class _SourceEncoder(Call):
    """The encoder of an encoder-decoder."""

    stem = "encoder_model"

    def __init__(self, model: Any) -> None:
        samples = {"input_ids": _ids(ROWS, SOURCE), "attention_mask": _mask(ROWS, SOURCE)}
        super().__init__(model, samples, dict.fromkeys(samples, _ENCODER))
        self.output_axes = {"last_hidden_state": _ENCODER}

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        return (self.model.get_encoder()(**feed).last_hidden_state,)


class _FirstStep(Call):
    """The decoder of an encoder-decoder without past; fills the keys and values of the encoder's side."""

    stem = "decoder_model"

    def __init__(self, model: Any, hidden: torch.Tensor, caches: EncoderDecoderCache) -> None:
        samples = {
            "encoder_attention_mask": _mask(ROWS, SOURCE),
            "input_ids": _ids(ROWS, STEPS),
            "encoder_hidden_states": hidden,
        }
        axes = dict.fromkeys(samples, _ENCODER)
        axes["input_ids"] = _DECODER
        super().__init__(model, samples, axes)
        self.output_axes = {"logits": _DECODER}
        for layer in range(len(caches)):
            for part, length in (("decoder", "decoder_sequence_length"), ("encoder", _ENCODER[1])):
                for array in ("key", "value"):
                    self.output_axes[f"present.{layer}.{part}.{array}"] = {0: "batch_size", 2: length}

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        output = self.model(
            encoder_outputs=(feed["encoder_hidden_states"],),
            attention_mask=feed["encoder_attention_mask"],
            decoder_input_ids=feed["input_ids"],
            use_cache=True,
        )
        own, cross = output.past_key_values.self_attention_cache, output.past_key_values.cross_attention_cache
        pairs = zip(_pairs(own), _pairs(cross), strict=True)
        return (output.logits, *(array for mine, other in pairs for array in (*mine, *other)))


class _NextStep(Call):
    """The decoder of an encoder-decoder with past; the encoder's side of it never changes."""

    stem = "decoder_with_past_model"

    def __init__(self, model: Any, caches: EncoderDecoderCache) -> None:
        samples = {"encoder_attention_mask": _mask(ROWS, SOURCE), "input_ids": _ids(ROWS, STEPS)}
        axes: dict[str, Axes] = {"encoder_attention_mask": _ENCODER, "input_ids": _DECODER}
        own, cross = (
            _past_samples(caches.self_attention_cache, "decoder."),
            _past_samples(caches.cross_attention_cache, "encoder."),
        )
        before: Axes = {0: "batch_size", 2: "past_decoder_sequence_length"}
        after: Axes = {0: "batch_size", 2: "past_decoder_sequence_length + decoder_sequence_length"}
        past: Tensors = {}
        for layer in range(len(caches)):
            for part, group in (("decoder", own), ("encoder", cross)):
                for array in ("key", "value"):
                    name = f"past_key_values.{layer}.{part}.{array}"
                    past[name] = group[name]
                    axes[name] = before if part == "decoder" else {0: "batch_size", 2: _ENCODER[1]}
        super().__init__(model, {**samples, **past}, axes)
        self.output_axes = {"logits": _DECODER, **{_present(name): after for name in own}}
        # What the encoder said is in the past; transformers still asks for its shape.
        self.width = model.config.d_model

    def forward(self, feed: Tensors) -> tuple[torch.Tensor, ...]:
        mask = feed["encoder_attention_mask"]
        own = _cache(feed, "decoder.")
        unread = own.layers[0].keys.new_zeros((*mask.shape, self.width))
        output = self.model(
            encoder_outputs=(unread,),
            attention_mask=mask,
            decoder_input_ids=feed["input_ids"],
            past_key_values=EncoderDecoderCache(own, _cache(feed, "encoder.")),
            use_cache=True,
        )
        return (output.logits, *_flat(output.past_key_values.self_attention_cache))


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.int64)


def _mask(rows: int, length: int) -> torch.Tensor:
    """A mask with padding in front of the first row: a sample without any would let masks be dropped."""
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, 0] = 0
    return mask


def _prompt() -> Tensors:
    return {"input_ids": _ids(ROWS, STEPS), "attention_mask": _mask(ROWS, STEPS)}


def _fake(mode: FakeTensorMode, feed: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: mode.from_tensor(value) for name, value in feed.items()}


def _cache_of(model: Any, feed: Mapping[str, Any], mode: FakeTensorMode) -> Any:
    """The cache that a model fills when it is run on fake inputs."""
    with mode:
        return model(**feed, use_cache=True).past_key_values


def _states(model: Any, mode: FakeTensorMode) -> torch.Tensor:
    feed = _fake(mode, {"input_ids": _ids(ROWS, SOURCE), "attention_mask": _mask(ROWS, SOURCE)})
    with mode:
        states: torch.Tensor = model.get_encoder()(**feed).last_hidden_state
    return states


def _past_samples(cache: DynamicCache, part: str) -> Tensors:
    """Keys and values of `PAST` tokens (of the encoder's side: as many as it read), by optimum's names."""
    samples = {}
    for layer, pair in enumerate(_pairs(cache)):
        for array, value in zip(("key", "value"), pair, strict=True):
            rows, heads, length, size = value.shape
            shape = (rows, heads, length if part == "encoder." else PAST, size)
            samples[f"past_key_values.{layer}.{part}{array}"] = torch.zeros(shape, dtype=value.dtype)
    return samples


def _cache(feed: Tensors, part: str) -> DynamicCache:
    """transformers' cache of flat inputs.

    It is made without a config, so that layers of sliding attention keep all keys: their masks do the rest,
    and every layer's past has the same length.
    """
    keys = [name for name in feed if name.startswith("past_key_values.") and f".{part}key" in name]
    return DynamicCache([(feed[name], feed[name.removesuffix("key") + "value"]) for name in keys])


def _pairs(cache: DynamicCache) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _flat(cache: DynamicCache) -> list[torch.Tensor]:
    return [array for pair in _pairs(cache) for array in pair]


def _present(name: str) -> str:
    return name.replace("past_key_values", "present", 1)
