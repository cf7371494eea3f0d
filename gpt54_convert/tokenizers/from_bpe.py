"""BPE models of tokenizer.json -> GGUF: byte-level ones (gpt2), and those of sentencepiece (llama)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import UnsupportedError
from gpt54_convert.tokenizers.converted import Converted, Json, metaspace_prefix, normalizers_of, refused
from gpt54_convert.tokenizers.keys import BYTE_TOKENS, SPACE
from gpt54_convert.tokenizers.merges import (
    Pair,
    parse_merges,
    same_by_scores,
    scores_from_merges,
    unreachable,
)
from gpt54_convert.tokenizers.pre_names import Row, Step
from gpt54_convert.tokenizers.pretokenizers import rows_for, steps_of, unknown_structure
from gpt54_convert.tokenizers.source import Source


def convert_bpe(source: Source, architecture: str, pre: str | None) -> Converted:
    model = source.model
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(
                f"{source.file} marks words with {model[name]!r} ({name}), which GGUF cannot say"
            )
    steps = steps_of(source.tokenizer.get("pre_tokenizer"), source.file)
    merges = parse_merges(model.get("merges"), model["vocab"], f"{source.file} (model.merges)")
    if any(kind.startswith("ByteLevel") for kind, _ in steps):
        name = pre or _choose(source, steps, merges).name
        return Converted("gpt2", name, merges=merges)
    return _spaced(source, steps, merges, architecture, pre)


def _choose(source: Source, steps: tuple[Step, ...], merges: list[Pair]) -> Row:
    """The row with this structure; where only ignore_merges differs, one for which that changes nothing."""
    normalizers = [step["type"] for step in normalizers_of(source.tokenizer.get("normalizer"), source.file)]
    if normalizers not in ([], ["NFC"]):
        raise refused(source, f"normalizes text ({', '.join(normalizers)})")
    rows = [row for row in rows_for(steps) if not row.only_restored]
    if not rows:
        raise unknown_structure(steps, source.file)
    whole_words = bool(source.model.get("ignore_merges"))
    same = [row for row in rows if row.ignore_merges == whole_words]
    if not same:
        added = {token["content"] for token in source.tokenizer["added_tokens"]}  # found before any merge
        odd = unreachable((token for token in source.model["vocab"] if token not in added), merges)
        if odd:
            raise refused(
                source, f"has ignore_merges {whole_words}, and tokens that need it ({odd[0]!r:.40})"
            )
        same = rows
    named = normalizers[0] if normalizers else None
    return next((row for row in same if row.normalizer == named), same[0])


def _spaced(
    source: Source, steps: tuple[Step, ...], merges: list[Pair], architecture: str, pre: str | None
) -> Converted:
    """sentencepiece's BPE: spaces are U+2581, unknown characters are bytes."""
    model = source.model
    prefix = _space_prefix(source, steps) if pre is None else _space_prefix_or_guess(source, steps)
    if not model.get("byte_fallback") or not set(model["vocab"]) >= BYTE_TOKENS:
        raise UnsupportedError(
            f"{source.file} has no byte fallback (256 tokens <0x00> to <0xFF>), without which llama.cpp "
            "cannot load a sentencepiece BPE; use another tokenizer"
        )
    if architecture == "gemma4":
        return _by_merges("gemma4", pre or "gemma4", merges, prefix)
    unknown = model.get("unk_token")
    special = {token["content"] for token in source.tokenizer["added_tokens"] if token.get("special")}
    plain = {token for token in model["vocab"] if token not in BYTE_TOKENS and token not in special}
    flags = {"add_space_prefix": prefix}
    if source.scores is not None:
        return _scored(source.scores, unknown, flags)
    scores = scores_from_merges(plain, merges)
    kept = [pair for pair in merges if pair[0] in plain and pair[1] in plain and pair[0] + pair[1] in plain]
    odd = same_by_scores({token: scores[token] for token in plain}, kept)
    if odd is None or pre == "default":
        return _scored(scores, unknown, flags)
    if prefix:
        raise refused(source, f"has merges that no scores can stand for ({odd!r:.40})")
    return _by_merges("gpt2", pre or "sarvam-moe", merges, prefix)


def _by_merges(model: str, pre: str, merges: list[Pair], prefix: bool) -> Converted:
    """Plain BPE over text with U+2581 for spaces: llama.cpp does that for Gemma 4, and for others by name."""
    return Converted(model, pre, merges=merges, bytes=BYTE_TOKENS, flags={"add_space_prefix": prefix})


def _scored(scores: Mapping[str, float], unknown: Any, flags: Mapping[str, bool]) -> Converted:
    text = unknown if isinstance(unknown, str) else None
    return Converted("llama", "default", scores=scores, unknown=text, bytes=BYTE_TOKENS, flags=flags)


def _space_prefix(source: Source, steps: tuple[Step, ...]) -> bool:
    """Whether a space is put before the text; refuses any structure that is not sentencepiece's."""
    normalizers = normalizers_of(source.tokenizer.get("normalizer"), source.file)
    shape = [_shape(step) for step in normalizers]
    kinds = [kind for kind, _ in steps]
    if not steps or steps == (("Split:MergedWithPrevious", r"\ "),):
        if shape in (["prepend", "spaces"], ["spaces"]):
            return shape[0] == "prepend"
    elif kinds == ["Metaspace"] and not shape:
        return metaspace_prefix(source)
    names = [step["type"] for step in normalizers] + kinds
    raise refused(source, f"prepares text for BPE in an unknown way ({', '.join(names) or 'not at all'})")


def _shape(step: Json) -> str:
    if step["type"] == "Prepend" and step.get("prepend") == SPACE:
        return "prepend"
    pattern = step.get("pattern")
    if step["type"] == "Replace" and step.get("content") == SPACE and pattern == {"String": " "}:
        return "spaces"
    return "other"


def _space_prefix_or_guess(source: Source, steps: tuple[Step, ...]) -> bool:
    try:
        return _space_prefix(source, steps)
    except UnsupportedError:
        return any(
            _shape(step) == "prepend" for step in normalizers_of(source.tokenizer["normalizer"], source.file)
        )
