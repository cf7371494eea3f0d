"""Unigram models of tokenizer.json -> the t5 tokenizer of GGUF."""

from __future__ import annotations

import base64
import binascii

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers.converted import Converted, metaspace_prefix, normalizers_of, refused
from gpt54_convert.tokenizers.keys import SPACE, GgufKey
from gpt54_convert.tokenizers.pretokenizers import steps_of
from gpt54_convert.tokenizers.source import Source


def convert_unigram(source: Source, architecture: str, pre: str | None) -> Converted:
    model = source.model
    unknown = model.get("unk_id")
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(model["vocab"]):
        raise InputError(
            f"{source.file} (model.unk_id) names no token of the vocabulary; save the tokenizer again"
        )
    if model.get("byte_fallback") and pre is None:
        raise refused(source, "falls back to bytes in a Unigram model")
    charsmap, merge_spaces = _unigram_normalizer(source, strict=pre is None)
    steps = [kind for kind, _ in steps_of(source.tokenizer.get("pre_tokenizer"), source.file)]
    if steps not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) and pre is None:
        raise refused(
            source, f"splits text in an unknown way for Unigram ({', '.join(steps) or 'not at all'})"
        )
    flags = {
        "add_space_prefix": metaspace_prefix(source) if "Metaspace" in steps else False,
        "remove_extra_whitespaces": merge_spaces or "WhitespaceSplit" in steps,
    }
    more = (
        (GgufKey("tokenizer.ggml.precompiled_charsmap", list(charsmap), "ARRAY:UINT8"),) if charsmap else ()
    )
    return Converted(
        "t5",
        "default",
        scores={piece: float(score) for piece, score in model["vocab"]},
        unknown=model["vocab"][unknown][0],
        flags=flags,
        more=more,
    )


def _unigram_normalizer(source: Source, strict: bool) -> tuple[bytes, bool]:
    """The charsmap, and whether runs of spaces become one."""
    charsmap, merge_spaces = b"", False
    for step in normalizers_of(source.tokenizer.get("normalizer"), source.file):
        kind = step["type"]
        if kind == "Precompiled" and not charsmap:
            try:
                charsmap = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise InputError(
                    f"{source.file} (precompiled_charsmap) is no base64; save it again"
                ) from None
            _check_charsmap(charsmap, source.file)
        elif (
            kind == "Replace"
            and step.get("pattern") == {"Regex": " {2,}"}
            and step.get("content") in (" ", SPACE)
        ):
            merge_spaces = True
        elif kind == "Strip" or (kind == "Replace" and step.get("pattern") == {"Regex": "^ +| +$"}):
            continue  # goes with the one before: llama.cpp drops spaces at both ends when it merges them
        elif strict:
            raise refused(source, f"normalizes text with {kind}")
    return charsmap, merge_spaces


def _check_charsmap(charsmap: bytes, file: str) -> None:
    """llama.cpp throws at a charsmap whose header points beyond its end."""
    if charsmap and (len(charsmap) < 5 or int.from_bytes(charsmap[:4], "little") + 4 >= len(charsmap)):
        raise InputError(f"{file} (precompiled_charsmap) is cut off; save the tokenizer again")
