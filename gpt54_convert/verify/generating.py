"""The small files that tell programs how to generate: special tokens, and what onnxruntime-genai is told.

A wrong end-of-text token there leaves every weight and every logit as it should be, and the text without end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.verify.artifact import Subject
from gpt54_convert.verify.verdict import FAIL, PASS, Check

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_GENAI = "genai_config.json"
_SIZES = {
    "head_size": "head_dim",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_hidden_layers": "layers",
    "num_key_value_heads": "kv_heads",
}


def check(subject: Subject, source: Checkpoint) -> list[Check]:
    """One check of each such file that the artifact's folder has."""
    if subject.container == "gguf":  # it holds all of this itself
        return []
    files = {"generation_config.json": _generation, "tokenizer_config.json": _readable, _GENAI: _genai}
    checks = []
    for name, look in files.items():
        path = subject.folder / name
        if path.is_file():
            content = _read(path)
            found = "is not a JSON object" if content is None else next(look(content, subject, source), "")
            detail = f"{name} {found}; make or copy the artifact again" if found else "describes the model"
            checks.append(Check("config", name, FAIL if found else PASS, detail))
    return checks


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _readable(content: Mapping[str, Any], subject: Subject, source: Checkpoint) -> Iterator[str]:
    """Its entries are for the tokenizer's own check."""
    yield from ()


def _generation(content: Mapping[str, Any], subject: Subject, source: Checkpoint) -> Iterator[str]:
    wanted = source.generation_config or {}
    for key in _TOKENS:
        if key in wanted and content.get(key) != wanted[key]:
            yield f"has {key} {content.get(key)!r}, the model {wanted[key]!r}"


def _genai(content: Mapping[str, Any], subject: Subject, source: Checkpoint) -> Iterator[str]:
    model = content.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        yield "describes no decoder"
        return
    name = decoder.get("filename")
    if not isinstance(name, str) or not (subject.folder / name).is_file():
        yield f"names the graph {name!r}, which is not there"
    sizes = archs.by_name(source.architecture).sizes(source.config) if source.architecture else {}
    sizes = {"kv_heads": sizes.get("heads", 0), **sizes}
    for key, size in _SIZES.items():
        if sizes.get(size) and decoder.get(key) != sizes[size]:
            yield f"has {key} {decoder.get(key)!r}, the model {sizes[size]}"
    ends = [place.get("eos_token_id") for place in (source.generation_config or {}, source.config)]
    wanted = next((end for end in ends if end is not None), None)
    if wanted is not None and _ids(model.get("eos_token_id")) != _ids(wanted):
        yield f"has eos_token_id {model.get('eos_token_id')!r}, the model {wanted!r}"


def _ids(value: Any) -> set[Any]:
    return set(value) if isinstance(value, list) else {value}
