"""The metadata of a GGUF file: what it is, how it computes, its tokenizer.

Names and conventions: ggml-org/ggml docs/gguf.md; llama.cpp's llama-arch.cpp and its converter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gpt54_convert import tokenizers
from gpt54_convert.archs import Architecture
from gpt54_convert.archs import _metadata as metadata
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.exporters._sink import SinkOptions

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_FLOATS = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
_SIZE = re.compile(r"(^|[-_ .])\d+(\.\d+)?[kmbt]([-_ .]|$)", re.IGNORECASE)

Keys = list[tuple[str, str, Any]]
Stored = Sequence[tuple[LazyTensor, str]]


def file_keys(
    checkpoint: Checkpoint, architecture: Architecture, options: SinkOptions, stored: Stored
) -> Keys:
    """Every key of the file, in the order of other converters: general, architecture, tokenizer, ours.

    stored: the tensors as they are written, each with ggml's name of its type.
    """
    from gguf.constants import LlamaFileType

    keys: Keys = [
        ("general.architecture", "STRING", architecture.gguf),
        ("general.type", "STRING", "model"),
        ("general.name", "STRING", options.name),
        ("general.size_label", "STRING", size_label(checkpoint)),
    ]
    license_name = checkpoint.config.get("license")
    if isinstance(license_name, str):
        keys.append(("general.license", "STRING", license_name))
    keys += metadata.to_gguf(architecture, checkpoint.config)
    keys.append(("general.quantization_version", "UINT32", QUANTIZATION_VERSION))
    keys.append(("general.file_type", "UINT32", int(LlamaFileType[_file_type(options.label, stored)])))
    keys += tokenizer_keys(checkpoint, architecture, options.pre)
    return keys + metadata.own_keys(checkpoint.config, checkpoint.generation_config)


def size_label(checkpoint: Checkpoint) -> str:
    """The number of parameters as in file names: 135M, 1.2B."""
    from gguf.utility import size_label as label

    return str(label(checkpoint.parameter_count, checkpoint.parameter_count, 0, 0))


def file_stem(checkpoint: Checkpoint, options: SinkOptions, stored: Stored) -> str:
    """`Base-SizeLabel-ENCODING`; the size is left out where the name has one already."""
    from gguf.utility import naming_convention

    name = re.sub(r"[^\w.+-]+", "-", options.name).strip("-.") or "model"
    size = None if _SIZE.search(name) else size_label(checkpoint)
    encoding = re.sub("^(MOSTLY|ALL)_", "", _file_type(options.label, stored))
    return str(naming_convention(name, None, None, None, size, encoding))


def _file_type(label: str, stored: Stored) -> str:
    """The name in llama.cpp's list of file types that fits best: the scheme's own, else of most weights."""
    from gguf.constants import LlamaFileType

    wanted = f"MOSTLY_{label.upper()}"
    if wanted in LlamaFileType.__members__:
        return wanted
    counts: Counter[str] = Counter()
    for view, kind in stored:
        if len(view.shape) > 1:
            counts[kind] += view.size
    kind = counts.most_common(1)[0][0] if counts else "F32"
    names = (_FLOATS.get(kind, ""), f"MOSTLY_{kind}", f"MOSTLY_{kind}_M", f"MOSTLY_{kind}_MOE")
    return next((name for name in names if name in LlamaFileType.__members__), "GUESSED")


_last: tuple[tuple[Any, ...], Keys] = ((), [])


def tokenizer_keys(checkpoint: Checkpoint, architecture: Architecture, pre: str | None) -> Keys:
    """The `tokenizer.*` keys; a model without tokenizer files is marked as having no vocabulary.

    The last result is kept: laying a file out happens several times before it is written, and a large
    vocabulary takes seconds.
    """
    global _last  # noqa: PLW0603
    if not checkpoint.tokenizer:
        return [("tokenizer.ggml.model", "STRING", "no_vocab")]
    vocab = architecture.sizes(checkpoint.config)["vocab"]
    wanted = (checkpoint.tokenizer, checkpoint.config, architecture.gguf, vocab, pre)
    if len(_last[0]) == len(wanted) and all(_same(*pair) for pair in zip(_last[0], wanted, strict=True)):
        return list(_last[1])
    found = tokenizers.to_gguf(
        checkpoint.tokenizer,
        checkpoint.config,
        gguf_architecture=architecture.gguf,
        vocab_size=vocab,
        pre=pre,
    )
    _last = (wanted, [(key.key, key.type, key.value) for key in found])
    return list(_last[1])


def _same(first: Any, second: Any) -> bool:
    return first is second or (not isinstance(first, Mapping) and bool(first == second))
