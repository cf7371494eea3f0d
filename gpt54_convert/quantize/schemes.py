"""Which role gets which grid: the named mixes people know, as data.

A scheme is a default grid and a list of rules; the first rule that speaks of a tensor's role and layer wins.
The llama.cpp mixes follow `llama_tensor_get_type_impl` of llama.cpp b11434 (a test compares them with its
quantizer, tensor by tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.grids import FLOAT, GRIDS, grid


@dataclass(frozen=True)
class Place:
    """Where a weight stands: its role, its layer among how many, and query heads per key/value head."""

    role: str
    layer: int
    layers: int
    heads_per_kv: int = 1


def _more(place: Place) -> bool:
    """First and last eighth, and every third layer between: where llama.cpp spends more bits."""
    i, n = place.layer, place.layers
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


LAYERS: dict[str, Callable[[Place], bool]] = {
    "every layer": lambda place: True,
    "the layers of more bits": _more,
    "the first 2 layers": lambda place: place.layer < 2,
    "the first 4 layers": lambda place: place.layer < 4,
    "the first eighth": lambda place: place.layer < place.layers // 8,
    "the first sixteenth": lambda place: place.layer < place.layers // 16,
    "2 or more queries a key": lambda place: place.heads_per_kv >= 2,
    "4 or more queries a key": lambda place: place.heads_per_kv >= 4,
}


@dataclass(frozen=True)
class Rule:
    """`grid` for every weight whose role matches one of `roles` (globs, by `|`), in the layers of `where`."""

    roles: str
    grid: str
    where: str = "every layer"

    def holds(self, place: Place) -> bool:
        named = any(fnmatchcase(place.role, role) for role in self.roles.split("|"))
        return named and LAYERS[self.where](place)


# What a row length that a grid's superblocks do not divide gets instead.
SUPER_FALLBACK = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "iq4_xs": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}

# The same for mixes of our own: the best grid of about that size, by the loss of SmolLM2's tensors.
FINE_FALLBACK = {
    "q3_k": "iq4_nl",
    "iq4_xs": "iq4_nl",
    "q4_k": "iq4_nl",
    "q5_k": "q5_0",
    "q6_k": "q5_1",
}

# Never quantized: small, and each of their errors reaches everything behind them.
KEPT_ROLES = "norm.*|enc.norm.*|*.bias|*.rel_bias|embed.position|embed.type|buffer"

_VALUE = "attn.v|enc.attn.v|cross.v|attn.qkv|enc.attn.qkv"
_DOWN = "ffn.down|enc.ffn.down"
_OUT = "attn.out|enc.attn.out|cross.out"
_KEY = "attn.k|enc.attn.k|cross.k"
_QKV = "attn.qkv|enc.attn.qkv"


@dataclass(frozen=True)
class Scheme:
    """A named mix.

    default: the grid of every matrix that no rule names.
    containers: those it is meant for; the first is its home.
    fallback: grid -> grid for rows that the former does not divide; float16 is the last resort.
    activations: what enters a matrix on the grid `default` is rounded to 8 bits too when the model runs.
    """

    name: str
    description: str
    default: str
    rules: tuple[Rule, ...] = ()
    containers: tuple[str, ...] = ("gguf",)
    fallback: Mapping[str, str] | None = None
    activations: bool = False

    def grid_for(self, place: Place) -> str:
        """The grid that this scheme wants for a weight, before row lengths and containers are looked at."""
        for rule in self.rules:
            if rule.holds(place):
                return rule.grid
        return self.default


_INT = ("gguf", "safetensors", "onnx")


def _float(name: str) -> Scheme:
    containers = ("gguf", "safetensors") if name == "bfloat16" else _INT
    return Scheme(name, f"every weight in {name}", name, containers=containers)


def _mix(name: str, description: str, default: str, *rules: Rule, head: str = "q6_k") -> Scheme:
    return Scheme(name, description, default, (Rule("head", head), *rules), fallback=SUPER_FALLBACK)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "int4",
            "4-bit groups of 32, one set of codes and float16 scales for every container; head in 8 bits",
            "int4-g32",
            (Rule("head", "int8-g32"),),
            _INT,
        ),
        Scheme(
            "int8",
            "8-bit groups of 32, one set of codes and float16 scales for every container",
            "int8-g32",
            containers=_INT,
        ),
        _mix(
            "q4_k_m",
            "llama.cpp's Q4_K_M: 4-bit superblocks, more bits for sensitive layers",
            "q4_k",
            Rule(_VALUE, "q6_k", "the layers of more bits"),
            Rule(_DOWN, "q6_k", "the layers of more bits"),
        ),
        _mix(
            "q4_k_s",
            "llama.cpp's Q4_K_S: 4-bit superblocks almost everywhere",
            "q4_k",
            Rule(_VALUE, "q5_k", "the first 4 layers"),
            Rule(_DOWN, "q5_k", "the first eighth"),
        ),
        _mix(
            "q5_k_m",
            "llama.cpp's Q5_K_M: 5-bit superblocks, more bits for sensitive layers",
            "q5_k",
            Rule(_VALUE, "q6_k", "the layers of more bits"),
            Rule(_DOWN, "q6_k", "the layers of more bits"),
        ),
        _mix("q6_k", "llama.cpp's Q6_K: 6-bit superblocks everywhere", "q6_k"),
        _mix(
            "q3_k_m",
            "llama.cpp's Q3_K_M: 3-bit superblocks, 4 and 5 bits for sensitive weights",
            "q3_k",
            Rule(_VALUE, "q5_k", "the first 2 layers"),
            Rule(_VALUE, "q4_k"),
            Rule(_DOWN, "q5_k", "the first sixteenth"),
            Rule(f"{_DOWN}|{_OUT}", "q4_k"),
        ),
        _mix(
            "q2_k",
            "llama.cpp's Q2_K: 2-bit superblocks, 3 and 4 bits for sensitive weights",
            "q2_k",
            Rule(_VALUE, "q4_k", "4 or more queries a key"),
            Rule(f"{_VALUE}|{_DOWN}|{_OUT}", "q3_k"),
        ),
        _mix("q8_0", "llama.cpp's Q8_0: 8-bit groups of 32 everywhere", "q8_0", head="q8_0"),
        _mix(
            "iq4_xs",
            "llama.cpp's IQ4_XS: 4-bit non-linear levels",
            "iq4_xs",
            Rule(_VALUE, "q5_k", "4 or more queries a key"),
            Rule(_DOWN, "q5_k", "the first eighth"),
        ),
        Scheme(
            "mix4",
            "4-bit superblocks, more for values, keys and down-projections: what SmolLM2 is sensitive to",
            "q4_k",
            (
                Rule("head", "q6_k"),
                Rule(_VALUE, "q8_0", "2 or more queries a key"),
                Rule(f"{_VALUE}|{_DOWN}", "q5_k"),
                Rule(_KEY, "q5_k", "2 or more queries a key"),
            ),
            fallback=FINE_FALLBACK,
        ),
        Scheme(
            "w8a8",
            "8-bit weights, one scale a row, and 8-bit activations, scaled as they come",
            "int8-channel",
            containers=("safetensors", "onnx"),
            activations=True,
        ),
        _float("float32"),
        _float("float16"),
        _float("bfloat16"),
    )
}

# `--bits N`: the schemes tried in order, each container taking the first that is meant for it.
BITS: dict[int, tuple[str, ...]] = {
    2: ("q2_k",),
    3: ("q3_k_m",),
    4: ("mix4", "int4"),
    5: ("q5_k_m",),
    6: ("q6_k",),
    8: ("int8",),
}


def scheme(name: str) -> Scheme:
    """The scheme called `name`; the name of any grid is the scheme that puts every matrix on it.

    Raises UsageError for a name that is neither.
    """
    key = name.lower()
    if key in SCHEMES:
        return SCHEMES[key]
    try:
        pure = grid(key)
    except UsageError:
        raise UsageError(
            f"unknown scheme {name!r}{_near(key)}: use one of {', '.join(SCHEMES)}, or the name of a grid "
            "(`gpt54-convert list grids`)"
        ) from None
    containers = ("gguf",) if pure.name in GRIDS and pure.kind != FLOAT else _INT
    return Scheme(pure.name, f"every matrix in {pure.name}", pure.name, (), containers, SUPER_FALLBACK)


def _near(name: str) -> str:
    close = get_close_matches(name, (*SCHEMES, *GRIDS), 1, 0.7)
    return f" (did you mean {close[0]}?)" if close else ""
