"""The words in which an architecture is described; each file beside this one is such a description.

An architecture is a table: which weights it has, what role each plays, what it is called in transformers
and in GGUF, its shape, and how the two containers store it differently.  Steps speak roles, never names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.config import lookup
from gpt54_convert.errors import InputError

# Layer stacks a weight may repeat over; a Sizes entry of the same name gives their depth.
ENCODER, DECODER = "encoder_layers", "layers"

Sizes = Mapping[str, int]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Weight:
    """One kind of weight.

    role: what it does (`attn.q`, `ffn.down`, `norm.attn`, `embed`, `head`; `cross.q` for cross-attention;
        encoder stacks of encoder-decoders have the prefix `enc.`).
    hf, gguf: its name without `.weight` or `.bias`, `{i}` standing for the layer.
    shape: names of Sizes entries or products of them, as [out, in]; one entry for a vector.
    bias: `no`, `yes` or `maybe` (some checkpoints of this architecture have it).
    hf_suffix, gguf_suffix: what follows the name of the weight itself.
    rope: Sizes entry that counts its heads, where ggml's rotary layout orders the rows otherwise.
    conv1d: transformers stores it [in, out].
    plus_one: GGUF stores it with 1 added (gemma's norms).
    stack: the Sizes entry that counts its layers.
    optional: may be absent (a tied head).
    only_first: exists in layer 0 alone.
    when: Sizes entry that must not be zero (with a leading `!`: must be zero) for the weight to exist.
    An empty `gguf` means that GGUF has no place for it: exporters of GGUF leave it out.
    """

    role: str
    hf: str
    gguf: str
    shape: tuple[str, ...]
    bias: str = "no"
    hf_suffix: str = ".weight"
    gguf_suffix: str = ".weight"
    rope: str = ""
    conv1d: bool = False
    plus_one: bool = False
    stack: str = DECODER
    optional: bool = False
    only_first: bool = False
    when: str = ""

    def exists(self, sizes: Sizes) -> bool:
        """Whether a model of these sizes has this weight (see `when`)."""
        return not self.when or bool(sizes[self.when.lstrip("!")]) != self.when.startswith("!")


@dataclass(frozen=True)
class Match:
    """A tensor recognised: its weight, its layer (None outside the stacks), whether it is the bias."""

    weight: Weight
    layer: int | None
    is_bias: bool

    @property
    def role(self) -> str:
        return f"{self.weight.role}.bias" if self.is_bias else self.weight.role

    @property
    def gguf(self) -> str:
        """Its name in GGUF, or nothing where GGUF has no place for it."""
        if not self.weight.gguf:
            return ""
        stem = self.weight.gguf.format(i=self.layer)
        return stem + (".bias" if self.is_bias else self.weight.gguf_suffix)

    @property
    def hf(self) -> str:
        stem = self.weight.hf.format(i=self.layer)
        return stem + (".bias" if self.is_bias else self.weight.hf_suffix)

    @property
    def is_turned(self) -> bool:
        """Whether transformers stores it [in, out] (`Weight.conv1d`), where all else here is [out, in]."""
        return self.weight.conv1d and not self.is_bias

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape it must have: [out, in] of a matrix, [out] of a bias or a norm."""
        entries = self.weight.shape[:1] if self.is_bias else self.weight.shape
        return tuple(_product(entry, sizes) for entry in entries)


@dataclass(frozen=True)
class Key:
    """One metadata entry that both containers have.

    gguf: the key without the architecture's prefix.  hf: the key in config.json, dotted where nested;
    alternatives separated by `|`, the first one is written.  type: a gguf value type.
    default: transformers' own default, where config.json leaves the key out; None makes it required,
    unless `optional`.
    """

    gguf: str
    hf: str
    type: str = "UINT32"
    default: Any = None
    optional: bool = False


GgufKeys = dict[str, tuple[str, Any]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """A described architecture.

    name: its key here.  model_types: `model_type` values of config.json that it serves.
    gguf: its name in GGUF, or nothing where it has none.  kind: `decoder`, `encoder` or `encoder-decoder`.
    sizes: config -> the named sizes that shapes are made of.
    weights: the table.  keys: the metadata both containers share.
    prefixes: what checkpoints may put before the canonical names, or leave out (`-` marks the latter).
    renames: (regular expression, replacement) of other names that checkpoints use.
    ignored: regular expressions of buffers that are no weights.
    gguf_dropped: regular expressions of weights that GGUF has no place for and that are left out there.
    gguf_extra: config -> further GGUF keys (name without the architecture's prefix, or one that starts with
        `tokenizer.` -> (type, value)); raises UnsupportedError for what llama.cpp would compute differently.
    gguf_tensors: config -> small tensors that GGUF has and transformers computes.
    gguf_scales: config -> canonical names of vectors that GGUF must hold multiplied by a factor, because
        llama.cpp leaves out a constant that transformers applies.
    hf_extra: (GGUF keys without prefix, shapes of the tensors by GGUF name) -> further config entries.
        `rope_freqs` among the keys holds that tensor's values, `vocab_size` the embedding's rows.
    caveats: config -> what a runtime of GGUF does not reproduce, each a sentence for people.
    checks: config -> None, raising UnsupportedError for variants this table does not describe.
    size_keys: Sizes entry -> where config.json says it (alternatives by `|`); an entry that is missing here
        follows from the others.
    layer_types: config -> the kind of each layer's attention, or None where all are alike.
    width_scales: config -> role -> p, where every runtime multiplies that weight's output by width ** p.
    whole_heads: whether transformers wants the width to be a multiple of the number of heads.
    tied: whether the head is the embedding when config.json does not say.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    gguf: str
    kind: str
    sizes: Callable[[Config], dict[str, int]]
    weights: tuple[Weight, ...]
    keys: tuple[Key, ...]
    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    gguf_dropped: tuple[str, ...] = ()
    gguf_extra: Callable[[Config], GgufKeys] = lambda config: {}
    gguf_tensors: Callable[[Config], dict[str, NDArray[np.float32]]] = lambda config: {}
    gguf_scales: Callable[[Config], dict[str, float]] = lambda config: {}
    hf_extra: Callable[[Mapping[str, Any], Shapes], dict[str, Any]] = lambda keys, shapes: {}
    caveats: Callable[[Config], tuple[str, ...]] = lambda config: ()
    checks: Callable[[Config], None] = lambda config: None
    tied: bool = False
    size_keys: Mapping[str, str] = field(default_factory=dict)
    layer_types: Callable[[Config], list[str] | None] = lambda config: None
    width_scales: Callable[[Config], dict[str, float]] = lambda config: {}
    whole_heads: bool = True

    @cached_property
    def _by_hf(self) -> list[tuple[re.Pattern[str], Weight, bool]]:
        return [
            (_pattern(weight.hf, suffix), weight, is_bias)
            for weight in self.weights
            for suffix, is_bias in ((weight.hf_suffix, False), (".bias", True))
            if not is_bias or weight.bias != "no"
        ]

    def match(self, name: str) -> Match | None:
        """The weight behind a canonical (transformers) name, or None for one the table lacks."""
        return _first(self._by_hf, name)

    def gguf_names(self, sizes: Sizes) -> dict[str, Match]:
        """Every weight that a GGUF file of these sizes may hold, by its GGUF name."""
        return {match.gguf: match for match in self.expected(sizes).values() if match.gguf}

    def canonical(self, name: str) -> str | None:
        """The canonical form of a name found in a checkpoint; None for a buffer that is no weight."""
        if any(re.fullmatch(pattern, name) for pattern in self.ignored):
            return None
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        if self.match(name):
            return name
        for prefix in self.prefixes:
            other = prefix[1:] + name if prefix.startswith("-") else name.removeprefix(prefix)
            if self.match(other):
                return other
        return name

    def expected(self, sizes: Sizes) -> dict[str, Match]:
        """Every weight this model should have, optional ones included, by canonical name."""
        found = {}
        for weight in self.weights:
            if not weight.exists(sizes):
                continue
            depth = sizes[weight.stack] if "{i}" in weight.hf else 1
            for layer in range(1 if weight.only_first else depth):
                index = layer if "{i}" in weight.hf else None
                for is_bias in (False, True) if weight.bias != "no" else (False,):
                    match = Match(weight, index, is_bias)
                    found[match.hf] = match
        return found


def required(config: Config, key: str, default: Any = None) -> Any:
    """A value of config.json (dotted key, alternatives by `|`) or `default`; InputError where neither is."""
    value = lookup(config, key)
    if value is None:
        value = default
    if value is None:
        name = key.split("|", maxsplit=1)[0]
        raise InputError(f"config.json lacks {name!r}; without it the model's shape is unknown")
    return value


def integer(keys: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number among GGUF keys; InputError where it is missing, negative or no number."""
    value = keys.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(
            f"GGUF key {name} is {_shown(value)}, but must be a whole number; get the file again"
        )
    return value


def number(keys: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number among GGUF keys, as the shortest decimal that float32 rounds to the same value."""
    value = keys.get(name, default)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"GGUF key {name} is {_shown(value)}, but must be a number; get the file again")
    return float(str(np.float32(value))) if abs(value) < 3e38 else float(value)


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.40}"


def _pattern(template: str, suffix: str) -> re.Pattern[str]:
    return re.compile(re.escape(template + suffix).replace(r"\{i\}", r"(0|[1-9]\d{0,5})"))


def _first(table: list[tuple[re.Pattern[str], Weight, bool]], name: str) -> Match | None:
    for pattern, weight, is_bias in table:
        found = pattern.fullmatch(name)
        if found:
            return Match(weight, int(found[1]) if found.groups() else None, is_bias)
    return None


def _product(entry: str, sizes: Sizes) -> int:
    result = 1
    for factor in entry.split("*"):
        result *= int(factor) if factor.isdigit() else sizes[factor]
    return result
