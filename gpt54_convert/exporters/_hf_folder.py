"""The small files of a Hugging Face model folder: config.json, index, generation config, tokenizer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.quantize.grids import Grid, grid

# ggml's names of two integer grids: the same codes, scales and values.
_SAME = {"q4_0": "int4-g32", "q8_0": "int8-g32"}
# Entries of a source's config.json that would be wrong or private in an artifact.
_DROPPED = ("quantization_config", "_name_or_path", "torch_dtype", "dtype")
# transformers touches these models' `weight` while loading, before compressed weights could be restored;
# with `run_compressed: false` it restores them first, but knows only the first group's grid then.
_ONE_GRID = re.compile(r"t5|mt5|umt5|longt5|switch_transformers|pix2struct|udop")
# Tokenizer classes of transformers 5 that transformers 4 does not know.
_NEW_CLASSES = ("TokenizersBackend",)
_GENERAL_CLASS = "PreTrainedTokenizerFast"


def stored_grid(name: str) -> Grid:
    """The grid under the name that this container knows it by."""
    return grid(_SAME.get(name, name))


def one_grid_only(config: Mapping[str, Any]) -> bool:
    """True for models that transformers reads with one quantized grid only (the T5 family)."""
    return bool(_ONE_GRID.fullmatch(str(config.get("model_type", ""))))


def stored_name(checkpoint: Checkpoint, name: str) -> str:
    """A canonical name as the model class in config.json names it: a bare model has no prefix."""
    classes = checkpoint.config.get("architectures")
    own = str(classes[0]) if isinstance(classes, list) and classes else ""
    if checkpoint.architecture is None or not own.endswith("Model") or own.endswith("HeadModel"):
        return name
    for prefix in archs.by_name(checkpoint.architecture).prefixes:
        if prefix.startswith("-"):
            name = name.removeprefix(prefix[1:])
    return name


def side_files(
    checkpoint: Checkpoint, views: Sequence[LazyTensor], activations: str = ""
) -> dict[str, bytes]:
    """File name -> content of everything beside the weights; `views` are the tensors as they are stored.

    activations: the grid of the weights whose inputs are rounded to 8 bits at run time, or nothing.
    Raises UnsupportedError where the config could not describe the weights.
    """
    files = {}
    if checkpoint.config:
        files["config.json"] = to_json(config(checkpoint, views, activations))
    elif any(view.grid for view in views):
        raise UnsupportedError(
            "quantized safetensors need a config.json to describe them, and the source has none; "
            "name the model's folder instead of its file"
        )
    if checkpoint.generation_config is not None:
        files["generation_config.json"] = to_json(checkpoint.generation_config)
    for name, content in sorted(checkpoint.tokenizer.items()):
        files[name] = _portable(content) if name == "tokenizer_config.json" else content
    return {**files, **checkpoint.extras}


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON as transformers lays it out."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def index(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """model.safetensors.index.json; total_size counts the tensors' bytes, without headers."""
    return to_json({"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)})


def config(checkpoint: Checkpoint, views: Sequence[LazyTensor], activations: str = "") -> dict[str, Any]:
    """config.json of the artifact."""
    result = {key: value for key, value in checkpoint.config.items() if key not in _DROPPED}
    if checkpoint.architecture and not result.get("architectures"):
        result["architectures"] = [archs.by_name(checkpoint.architecture).model_class]
    dtype = _dtype(views)
    result["dtype"] = dtype  # transformers from 4.56 on
    result["torch_dtype"] = dtype  # older ones, and other readers
    if any(view.grid for view in views):
        result["quantization_config"] = quantization_config(checkpoint, views, activations)
    return result


def _dtype(views: Sequence[LazyTensor]) -> str:
    """The float type that the model should be computed in.

    A quantized one says float32: transformers casts the float16 scales to this type, and bfloat16 would
    round each to 8 bits; float16 could overflow where the source was bfloat16.  A float one says what
    most of its elements are.
    """
    if any(view.grid for view in views):
        return "float32"
    counts: Counter[str] = Counter({"float32": 0})
    for view in views:
        if view.dtype in ("float64", "float32", "float16", "bfloat16"):
            counts[view.dtype] += view.size
    return counts.most_common(1)[0][0]


def quantization_config(
    checkpoint: Checkpoint, views: Sequence[LazyTensor], activations: str = ""
) -> dict[str, Any]:
    """How compressed-tensors is to read the packed weights: one group a grid, its modules by name.

    Modules are named explicitly instead of by the class `Linear`: a tied head is a Linear too, and one
    that transformers makes anew (a pooler, say) must not be taken for compressed.
    """
    modules = {
        view.name.removesuffix(".weight"): stored_grid(view.grid).name if view.grid else None
        for view in views
        if len(view.shape) == 2 and view.name.endswith(".weight")
    }
    by_grid: dict[str, list[str]] = {}
    for name, target in modules.items():
        if target is not None:
            by_grid.setdefault(target, []).append(name)
    if len(by_grid) > 1 and one_grid_only(checkpoint.config):
        raise UnsupportedError(
            f"transformers reads a T5 with one grid only, and this one has {' and '.join(by_grid)}; "
            "give the same grid to all of its weights, or keep some as floats (--keep head=float16)"
        )
    groups = {
        f"group_{i}": _group(grid(name), _targets(modules, by_grid[name]), name == activations)
        for i, name in enumerate(by_grid)
    }
    formats = {group["format"] for group in groups.values()}
    result: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _ignored(checkpoint, modules),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if one_grid_only(checkpoint.config) and not activations:
        result["run_compressed"] = False
    return result


def _group(target: Grid, targets: list[str], activations: bool) -> dict[str, Any]:
    weights = _integers(target.bits, "group" if target.group else "channel", target.group or None, False)
    return {
        "targets": targets,
        "format": "int-quantized" if activations else "pack-quantized",
        "weights": weights,
        "input_activations": _integers(8, "token", None, True) if activations else None,
        "output_activations": None,
    }


def _integers(bits: int, strategy: str, group: int | None, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group,
        "dynamic": dynamic,
        "actorder": None,
        "block_structure": None,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }


def _targets(modules: Mapping[str, str | None], wanted: Iterable[str]) -> list[str]:
    """Regular expressions for `wanted`: one for the same module of all layers, where all share the grid."""
    members: dict[str, set[str | None]] = {}
    for name, target in modules.items():
        members.setdefault(_pattern(name, True), set()).add(target)
    found = (_pattern(name, len(members[_pattern(name, True)]) == 1) for name in wanted)
    return list(dict.fromkeys(found))


def _pattern(name: str, all_layers: bool) -> str:
    # The head model's prefix is left open, so that the bare model (AutoModel) finds its modules too.
    stem = re.escape(re.sub(r"^(model|transformer|bert)\.", "", name))
    if all_layers:
        stem = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", stem)
    return rf"re:(.*\.)?{stem}$"


def _ignored(checkpoint: Checkpoint, modules: Mapping[str, str | None]) -> list[str]:
    """The matrices kept as floats, and the head, which may be tied to one of them."""
    kept = [name for name, target in modules.items() if target is None and not _embeds(checkpoint, name)]
    if modules.get("lm_head") is None and "lm_head" not in kept:
        kept.append("lm_head")
    return kept


def _embeds(checkpoint: Checkpoint, module: str) -> bool:
    match = (
        archs.by_name(checkpoint.architecture).match(f"{module}.weight") if checkpoint.architecture else None
    )
    return match is not None and (match.role.startswith("embed") or match.role.endswith("rel_bias"))


def _portable(content: bytes) -> bytes:
    """tokenizer_config.json as transformers 4 can read it too; anything unexpected stays as it is."""
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content
    extra = settings.get("extra_special_tokens") if isinstance(settings, dict) else None
    is_new = isinstance(settings, dict) and settings.get("tokenizer_class") in _NEW_CLASSES
    if not is_new and not isinstance(extra, list):
        return content
    if is_new:
        settings["tokenizer_class"] = _GENERAL_CLASS
    if isinstance(extra, list):  # transformers 4 wants a dict under this name, and a list under the other
        del settings["extra_special_tokens"]
        settings.setdefault("additional_special_tokens", extra)
    return to_json(settings)
