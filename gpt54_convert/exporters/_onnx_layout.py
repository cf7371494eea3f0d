"""How the files of an ONNX artifact are called and where they stand: as optimum has it, or transformers.js.

optimum: `model.onnx` and `model.onnx_data` beside config.json; encoder-decoders have `encoder_model`,
`decoder_model` and `decoder_with_past_model`, which share the files of weights.
transformers.js: all of it in `onnx/`, the names with a suffix that says the type (`model_q4.onnx`), the two
decoders merged into one; a graph may read only the file that bears its own name, since a browser loads no
other, and config.json says how many such files there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.grids import grid

OPTIMUM, TRANSFORMERS_JS = "optimum", "transformers.js"
LAYOUTS = (OPTIMUM, TRANSFORMERS_JS)
MERGED = "decoder_model_merged"
# A decoder's second graph, and the longest text it takes: it holds tables of rotation for so many positions.
IN_PLACE, IN_PLACE_LONGEST = "model_in_place.onnx", 32_768
_SUFFIXES = {2: "_q2", 4: "_q4", 8: "_quantized"}  # transformers.js calls them dtype q2, q4, q8


@dataclass(frozen=True)
class Layout:
    """The names of one artifact.

    folder: the subfolder of graphs and weights.  suffix: what follows each graph's name.
    merged: the decoders of an encoder-decoder are one graph.  alone: every graph has its own file of weights.
    """

    folder: str = ""
    suffix: str = ""
    merged: bool = False
    alone: bool = False

    def graph(self, stem: str) -> str:
        """The file name of a graph."""
        return f"{stem}{self.suffix}.onnx"

    def data(self, stem: str) -> str:
        """The name of the first file of its weights."""
        return f"{self.graph(stem)}_data"


def layout(name: str, views: Iterable[LazyTensor], dtype: str) -> Layout:
    """The layout called `name` for weights as they are stored; graphs compute in `dtype`.

    Raises UsageError for a name that is none.
    """
    if name == OPTIMUM:
        return Layout()
    if name != TRANSFORMERS_JS:
        raise UsageError(f"--layout {name!r} is not one of {', '.join(LAYOUTS)}")
    bits: Counter[int] = Counter()
    for view in views:
        if view.grid:
            bits[grid(view.grid).bits] += view.size
    suffix = _SUFFIXES[bits.most_common(1)[0][0]] if bits else {"float16": "_fp16"}.get(dtype, "")
    return Layout("onnx", suffix, merged=True, alone=True)


def homes(checkpoint: Checkpoint, views: Mapping[str, LazyTensor], names: Layout) -> dict[str, str]:
    """The file of weights of each tensor, and of each second copy, called `tensor@file`.

    Graphs of one model share them: what the decoder reads (the embedding too) stands beside decoder_model,
    where the encoder and the decoder with past find it.  Where each graph stands alone, the encoder has its
    own embedding.
    """
    architecture = archs.by_name(checkpoint.architecture or "")
    if architecture.kind != "encoder-decoder":
        return dict.fromkeys(views, names.data("model"))
    encoder, decoder = names.data("encoder_model"), names.data(MERGED if names.merged else "decoder_model")
    found = {}
    for name in views:
        match = architecture.match(name)
        role = match.role if match is not None else ""
        found[name] = encoder if role.startswith("enc.") else decoder
        if names.alone and role == "embed":
            found[f"{name}@{encoder}"] = encoder
    return found


_JOINED = ("attn.q", "attn.k", "attn.v")


def neighbours(checkpoint: Checkpoint, views: Mapping[str, LazyTensor]) -> list[tuple[str, ...]]:
    """Query, key and value of every layer of a decoder, on one grid, and their biases: read as one matrix."""
    architecture = archs.by_name(checkpoint.architecture or "")
    found: dict[tuple[int | None, bool], dict[str, str]] = {}
    for name in views if architecture.kind == "decoder" else ():
        match = architecture.match(name)
        if match is not None and match.weight.role in _JOINED:
            found.setdefault((match.layer, match.is_bias), {})[match.weight.role] = name
    groups = []
    for (layer, _), names in found.items():
        group = tuple(names[role] for role in _JOINED if role in names)
        matrices = found.get((layer, False), {}).values()
        kinds = {(views[name].grid, views[name].dtype, views[name].shape[1:]) for name in group}
        on_grids = all(views[name].grid is not None for name in matrices)
        if len(group) == len(_JOINED) and len(kinds) == 1 and on_grids:
            groups.append(group)
    return groups


def copies(views: Mapping[str, LazyTensor], places: Iterable[str]) -> dict[str, LazyTensor]:
    """Every tensor that is written, second copies too, by the names of `homes`."""
    return {name: views[name.partition("@")[0]].renamed(name) for name in places}


def config_entry(graphs: Iterable[str], data: Iterable[str]) -> dict[str, int]:
    """How many files of weights every graph has, as transformers.js wants to be told."""
    files = list(data)
    return {graph: sum(file.startswith(f"{graph}_data") for file in files) for graph in graphs}
