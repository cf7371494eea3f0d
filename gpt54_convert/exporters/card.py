"""README.md of an artifact: a model card with what was measured while it was written.

The YAML head uses the words of the Hugging Face hub (`base_model`, `base_model_relation`, `quantized_by`,
`license`, `library_name`, `tags`); what is not known is left out rather than guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt54_convert import __version__, archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import OutputError
from gpt54_convert.exporters._onnx_layout import IN_PLACE
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.quantize.grids import FLOAT, grid

CARD = "README.md"
CARD_LIMIT = 1 << 20  # bytes of the source's own card that are looked at
Row = Mapping[str, Any]
_ORT_CLASSES = {
    "decoder": "ORTModelForCausalLM",
    "encoder-decoder": "ORTModelForSeq2SeqLM",
    "encoder": "ORTModelForFeatureExtraction",
}
_LIBRARIES = {"safetensors": "transformers", "gguf": "gguf", "onnx": "onnx"}
_AUTO_CLASSES = {
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}


def write(
    folder: Path,
    checkpoint: Checkpoint,
    options: SinkOptions,
    container: str,
    tensors: Sequence[Row],
    totals: Row,
    verified: str = "",
) -> Path:
    """Write the card of the artifact in `folder`; returns its path.

    tensors: one row a tensor, with `name`, `role`, `shape`, `grid`, `bits_per_weight`, `relative_error` and,
        where the grid is not the scheme's own, `reason`.
    totals: `parameters`, `size_bytes`, `bits_per_weight` of the whole.
    verified: a sentence on what verifying it came to.
    Raises OutputError where it cannot be written.
    """
    text = render(folder, checkpoint, options, container, tensors, totals, verified)
    path = folder / CARD
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def render(
    folder: Path,
    checkpoint: Checkpoint,
    options: SinkOptions,
    container: str,
    tensors: Sequence[Row],
    totals: Row,
    verified: str = "",
) -> str:
    """The card's text; `folder` is looked into for the names of files only."""
    quantized = any(grid(row["grid"]).kind != FLOAT for row in tensors)
    lines = [
        *_front_matter(checkpoint, options, container, quantized),
        f"# {_plain(options.name)}, {_plain(options.label)} ({container})",
        "",
        f"Made by gpt54-convert {__version__}: {totals['parameters']:,} parameters in "
        f"{totals['size_bytes']:,} bytes, {totals['bits_per_weight']:.3f} bits per weight.",
        "",
        *_history(checkpoint),
        *_table(tensors),
        *_exceptions(tensors),
        *([verified, ""] if verified else []),
        "## How to load",
        "",
        *_how_to_load(folder, checkpoint, container, quantized),
    ]
    return "\n".join(lines) + "\n"


def _history(checkpoint: Checkpoint) -> list[str]:
    """What config.json says was done to the weights before: drawn at random, pruned, distilled."""
    own = checkpoint.config.get("gpt54_convert")
    if not isinstance(own, Mapping):
        return []
    lines = []
    if own.get("weights") == "random":
        told = ", ".join(f"{key} {_plain(str(own.get(key)))}" for key in ("tier", "scale", "seed"))
        lines.append(f"**The weights are random** ({told}): this model has learned nothing.")
    pruned = own.get("pruned")
    if isinstance(pruned, Mapping):
        lines.append(f"Pruned; before that: {_plain(json.dumps(pruned)[:2000])}.")
    for key, words in (
        ("mapped", "First weights taken from a teacher, by a map"),
        ("distilled", "Distilled"),
    ):
        if isinstance(own.get(key), Mapping):
            told = ", ".join(
                f"{name.replace('_', ' ')} {_plain(str(each))}" for name, each in own[key].items()
            )
            lines.append(f"{words}: {told[:2000]}.")
    return [part for line in lines for part in (line, "")]


def _front_matter(checkpoint: Checkpoint, options: SinkOptions, container: str, quantized: bool) -> list[str]:
    base, license_name = _base_model(checkpoint), _license(checkpoint)
    lines = ["---"]
    if base:
        lines.append(f"base_model: {json.dumps(base)}")
        if quantized:
            lines.append("base_model_relation: quantized")
    if quantized:
        lines.append("quantized_by: gpt54-convert")
    if license_name:
        lines.append(f"license: {json.dumps(license_name)}")
    lines.append(f"library_name: {_LIBRARIES.get(container, container)}")
    tags = ["gpt54-convert", container, options.label, checkpoint.architecture or ""]
    if quantized and container == "safetensors":
        tags.append("compressed-tensors")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags) if tag), "---", ""]
    return lines


def _base_model(checkpoint: Checkpoint) -> str | None:
    """The hub's name of the source, where its config says so."""
    own = checkpoint.config.get("_name_or_path")
    return own if isinstance(own, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", own) and own[0] != "." else None


def _license(checkpoint: Checkpoint) -> str | None:
    """The license that the source's own card or config names."""
    card = checkpoint.source.path / CARD
    if not card.is_symlink() and card.is_file() and card.stat().st_size <= CARD_LIMIT:
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = re.search(r"^license: *[\"']?([\w.-]+)[\"']? *$", head[1], re.MULTILINE) if head else None
        if found:
            return found[1]
    own = checkpoint.config.get("license")
    return own if isinstance(own, str) and re.fullmatch(r"[\w.-]{1,40}", own) else None


def _table(tensors: Sequence[Row]) -> list[str]:
    """One line per role and grid; errors are those of the weights, relative to their norm."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in tensors:
        groups.setdefault((row["role"], row["grid"]), []).append(row)
    lines = [
        "| role | grid | tensors | weights | bits per weight | relative error (mean) | (worst) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (role, name), rows in groups.items():
        sizes = [math.prod(row["shape"]) for row in rows]
        bits = _mean(sizes, [row["bits_per_weight"] for row in rows])
        cells = (_plain(role), name, len(rows), f"{sum(sizes):,}", f"{bits:.3f}", *_errors(name, sizes, rows))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    note = "The relative error of quantized weights is the norm of their change over their own norm."
    return [*lines, "", note, ""]


def _errors(name: str, sizes: Sequence[int], rows: Sequence[Row]) -> tuple[str, str]:
    """Mean (root of the mean square, by weight) and worst relative error; floats are only rounded."""
    if grid(name).kind == FLOAT:
        return "—", "—"
    errors = [float(row["relative_error"]) for row in rows]
    return f"{math.sqrt(_mean(sizes, [error**2 for error in errors])):.3g}", f"{max(errors):.3g}"


def _mean(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The mean of `values`, each counted `sizes` times."""
    return sum(size * value for size, value in zip(sizes, values, strict=True)) / (sum(sizes) or 1)


def _exceptions(tensors: Sequence[Row]) -> list[str]:
    """Why some tensors are not on the grid that the scheme names."""
    reasons: dict[str, int] = {}
    for row in tensors:
        if row.get("reason"):
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    lines = [f"- {count} × {_plain(reason)}" for reason, count in sorted(reasons.items())]
    return ["Not as the scheme names it:", "", *lines, ""] if lines else []


def _how_to_load(folder: Path, checkpoint: Checkpoint, container: str, quantized: bool) -> list[str]:
    if container == "gguf":
        files = sorted(path.name for path in folder.glob("*.gguf"))
        return ["```sh", f"llama-cli -m {files[0] if files else 'MODEL.gguf'} -p 'Hello'", "```"]
    if container not in ("safetensors", "onnx"):
        return [f"Open it with a runtime for {container}."]
    kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "encoder"
    if container == "onnx":
        return _how_to_load_onnx(folder, kind)
    auto = _AUTO_CLASSES[kind]
    lines = [
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("path/to/this/folder")',
    ]
    if checkpoint.tokenizer:
        lines.append('tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")')
    lines.append("```")
    if quantized:
        lines += [
            "",
            "Needs `pip install compressed-tensors`. The model computes in float32, where it equals the",
            "stored codes and scales exactly; `dtype=torch.bfloat16` halves its memory and rounds scales.",
        ]
    return lines


def _how_to_load_onnx(folder: Path, kind: str) -> list[str]:
    graphs = sorted(path.name for path in folder.glob("*.onnx") if path.name != IN_PLACE)
    name = _ORT_CLASSES[kind]
    return [
        "In ONNX Runtime (`pip install onnxruntime`), which finds the weights beside the graph:",
        "",
        "```python",
        "import onnxruntime",
        "",
        *(f'session = onnxruntime.InferenceSession("path/to/this/folder/{graph}")' for graph in graphs),
        "```",
        "",
        "Inputs, outputs and file names are those of Hugging Face's optimum (`pip install optimum-onnx`):",
        "",
        "```python",
        f"from optimum.onnxruntime import {name}",
        "",
        f'model = {name}.from_pretrained("path/to/this/folder")',
        "```",
    ]


def _plain(text: str) -> str:
    """Text that cannot break out of a line or a table cell."""
    return re.sub(r"[\s|<>`]+", " ", text)
