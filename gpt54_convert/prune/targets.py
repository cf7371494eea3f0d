"""From options to the sizes of the smaller model, or one sentence why there is no such model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from gpt54_convert.archs import Architecture
from gpt54_convert.archs._family import TIERS, recognise
from gpt54_convert.errors import UsageError

if TYPE_CHECKING:
    from gpt54_convert.prune.step import Prune

STEP = 32  # widths are rounded up to multiples of it, so that groups of 32 weights fit
Sizes = dict[str, int]


def targets(options: Prune, architecture: Architecture, old: Mapping[str, int], tied: bool) -> Sizes:
    """The sizes that the pruned model shall have.

    old: those of the source, from `architecture.sizes`.  tied: whether its head is the embedding.
    Raises UsageError for what is larger than the source or does not divide.
    """
    asked = _asked(options, architecture, old)
    if options.tier is not None:
        sizes = {**tier_sizes(options.tier, architecture, old), **_attention(architecture, old, asked)}
        return _checked(architecture, old, {**sizes, **asked})
    if options.keep_params is not None:
        return _checked(architecture, old, _for_share(options.keep_params, architecture, old, asked, tied))
    return _checked(architecture, old, {**old, **asked, **_attention(architecture, old, asked)})


def _asked(options: Prune, architecture: Architecture, old: Mapping[str, int]) -> Sizes:
    """The sizes that were given by number, each no larger than the source's."""
    two = "encoder_layers" in old
    given = {
        "layers": options.decoder_layers or options.layers,
        "encoder_layers": options.encoder_layers or (options.layers if two else None),
        "width": options.width,
        "ffn": options.ffn,
        "heads": options.heads,
        "kv_heads": options.kv_heads,
    }
    if not two and (options.encoder_layers or options.decoder_layers):
        raise UsageError(f"{architecture.name} has one stack of layers; give --layers")
    if options.kv_heads and not grouped(architecture):
        raise UsageError(f"{architecture.name} has a key and value for each head; give --heads")
    asked = {name: size for name, size in given.items() if size is not None}
    for name, size in asked.items():
        if size > old[name]:
            raise UsageError(
                f"{size} {_word(name)} are more than the model's {old[name]}; pruning only removes"
            )
    return asked


def _word(name: str) -> str:
    return {"encoder_layers": "encoder layers", "kv_heads": "KV heads", "ffn": "ffn channels"}.get(
        name, "channels of width" if name == "width" else name
    )


def grouped(architecture: Architecture) -> bool:
    """Whether several heads share a key and value, by the table."""
    return any("kv_heads" in entry for weight in architecture.weights for entry in weight.shape)


def _tied_to_width(architecture: Architecture) -> bool:
    """Whether config.json has no entry for the head size, so that heads × head_dim is the width."""
    return "head_dim" not in architecture.size_keys


def _attention(architecture: Architecture, old: Mapping[str, int], asked: Sizes) -> Sizes:
    """Heads, KV heads and (where they make it up) width, as far as they follow from what was asked."""
    heads, kv, width = asked.get("heads"), asked.get("kv_heads"), asked.get("width")
    per_group = old["heads"] // old.get("kv_heads", old["heads"])
    if heads is None and kv is not None:
        heads = kv * per_group
    if _tied_to_width(architecture) and heads is None and width is not None:
        if width % old["head_dim"]:
            low = width // old["head_dim"] * old["head_dim"]
            raise UsageError(
                f"{architecture.name}'s width is a whole number of heads of {old['head_dim']}; take a "
                f"--width of {f'{low} or ' if low else ''}{low + old['head_dim']}"
            )
        heads = width // old["head_dim"]
    if heads is None:
        return {}
    if kv is None:
        old_kv = old.get("kv_heads", heads)
        kv = heads if per_group == 1 else old_kv
    found = {"heads": heads, **({"kv_heads": kv} if "kv_heads" in old else {})}
    if _tied_to_width(architecture) and width is None:
        found["width"] = heads * old["head_dim"]
    return found


def _checked(architecture: Architecture, old: Mapping[str, int], sizes: Sizes) -> Sizes:
    heads, kv, width = sizes["heads"], sizes.get("kv_heads", sizes["heads"]), sizes["width"]
    if heads % kv or heads // kv > old["heads"] // old.get("kv_heads", old["heads"]):
        raise UsageError(
            f"{heads} heads do not divide into {kv} KV heads of at most "
            f"{old['heads'] // old.get('kv_heads', old['heads'])} heads each; give others"
        )
    if _tied_to_width(architecture) and heads * sizes["head_dim"] != width:
        raise UsageError(
            f"{architecture.name} wants heads × {sizes['head_dim']} as its width, but {heads} heads and a "
            f"width of {width} were asked for; give one of them"
        )
    if architecture.whole_heads and width % heads and (heads, width) != (old["heads"], old["width"]):
        raise UsageError(
            f"transformers wants the width to be a multiple of the heads, but {width} is none of {heads}; "
            f"take a --width of {width // heads * heads} or other --heads"
        )
    return sizes


def tier_sizes(name: str, architecture: Architecture, old: Mapping[str, int]) -> Sizes:
    """What a tier's ratios make of a model; of the family's full model they make the tier itself."""
    tier = TIERS[name]
    found = recognise(architecture.name, old)
    if found is not None and found[0].name == "full":
        return {
            **old,
            **{k: v for k, v in tier.sizes(found[1]).items() if k != "vocab"},
            "kv_heads": tier.heads,
        }
    return scaled_sizes(architecture, old, tier.layer_ratio, tier.width_ratio)


def scaled_sizes(
    architecture: Architecture, old: Mapping[str, int], layer_ratio: Fraction, width_ratio: Fraction
) -> Sizes:
    """Layers and widths reduced by these ratios, rounded up: layers and heads to whole ones, widths to 32."""
    sizes = dict(old)
    for stack in ("layers", "encoder_layers"):
        if stack in old:
            sizes[stack] = math.ceil(old[stack] * layer_ratio)
    sizes["ffn"] = _rounded(old["ffn"], width_ratio)
    sizes.update(_heads(old, width_ratio))
    own = old["heads"] * old["head_dim"] == old["width"]
    # A width made up of its heads stays so: several runtimes accept nothing else.
    sizes["width"] = sizes["heads"] * old["head_dim"] if own else _rounded(old["width"], width_ratio)
    if architecture.whole_heads and sizes["width"] % sizes["heads"]:
        step = math.lcm(sizes["heads"], STEP)
        wider = -(-sizes["width"] // step) * step
        sizes["width"] = wider if wider <= old["width"] else old["width"] // sizes["heads"] * sizes["heads"]
    return sizes


def _rounded(size: int, ratio: Fraction) -> int:
    return min(size, -(-math.ceil(size * ratio) // STEP) * STEP)


def _heads(old: Mapping[str, int], ratio: Fraction) -> Sizes:
    """Heads and KV heads nearest above the ratio: fewer groups, fewer heads in each, or both."""
    wanted = math.ceil(old["heads"] * ratio)
    old_kv = old.get("kv_heads", old["heads"])
    if old_kv == old["heads"]:
        return {"heads": wanted, **({"kv_heads": wanted} if "kv_heads" in old else {})}
    choices = [
        (groups * each - wanted, abs(groups - old_kv * ratio), groups, each)
        for groups in range(1, old_kv + 1)
        for each in range(1, old["heads"] // old_kv + 1)
        if groups * each >= wanted
    ]
    _, _, groups, each = min(choices)
    return {"heads": groups * each, "kv_heads": groups}


def parameters(architecture: Architecture, sizes: Mapping[str, int], tied: bool) -> int:
    """Parameters of a model of these sizes, without biases that only some checkpoints have."""
    total = 0
    for match in architecture.expected(sizes).values():
        weight = match.weight
        if (weight.role == "head" and tied) or (weight.optional and weight.role != "head"):
            continue
        if not (match.is_bias and weight.bias == "maybe"):
            total += math.prod(match.shape(sizes))
    return total


def _for_share(
    share: float, architecture: Architecture, old: Mapping[str, int], asked: Sizes, tied: bool
) -> Sizes:
    """Sizes along the family's own line from full to nano that keep at most `share` of the parameters.

    Layers and widths shrink together (half of the layers go with 0.625 of the width); the ffn takes up what
    the rounding of the others leaves.  Numbers that were asked for stay fixed.
    """
    goal = share * parameters(architecture, old, tied)
    fixed = {**_attention(architecture, old, asked), **asked}
    found = []
    for step in range(401):
        layers, width = (Fraction(base ** (step / 100)).limit_denominator(10_000) for base in (0.5, 0.625))
        sizes = {**scaled_sizes(architecture, old, layers, width), **fixed}
        nominal = sizes["ffn"]
        if "ffn" not in fixed:
            sizes["ffn"] = _filling_ffn(architecture, sizes, old["ffn"], goal, tied)
        left = goal - parameters(architecture, sizes, tied)
        if left >= 0 and sizes["ffn"] > 0:
            found.append((left / goal + 0.1 * abs(math.log(sizes["ffn"] / nominal)), step, sizes))
    if not found:
        raise UsageError(
            f"no shape of this model keeps {share:g} of its parameters (embedding and what was fixed are "
            "more than that); take a larger --keep-params"
        )
    return min(found, key=lambda each: each[:2])[2]


def _filling_ffn(architecture: Architecture, sizes: Sizes, most: int, goal: float, tied: bool) -> int:
    """The largest ffn, a multiple of 32 or the source's own, with which the model stays below `goal`."""
    rest = parameters(architecture, {**sizes, "ffn": 0}, tied)
    each = parameters(architecture, {**sizes, "ffn": 1}, tied) - rest
    fits = max(0, int((goal - rest) // each))
    return most if fits >= most else fits // STEP * STEP
