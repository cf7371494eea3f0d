"""WordPiece models of tokenizer.json -> the bert tokenizer of GGUF."""

from __future__ import annotations

from gpt54_convert.tokenizers.converted import Converted, normalizers_of, refused
from gpt54_convert.tokenizers.keys import SPACE
from gpt54_convert.tokenizers.pretokenizers import steps_of
from gpt54_convert.tokenizers.source import Source


def convert_wordpiece(source: Source, architecture: str, pre: str | None) -> Converted:
    model = source.model
    if model.get("continuing_subword_prefix", "##") != "##":
        raise refused(source, f"continues words with {model['continuing_subword_prefix']!r}")
    normalizers = normalizers_of(source.tokenizer.get("normalizer"), source.file)
    kinds = [step["type"] for step in normalizers]
    steps = [kind for kind, _ in steps_of(source.tokenizer.get("pre_tokenizer"), source.file)]
    if (kinds, steps) != (["BertNormalizer"], ["BertPreTokenizer"]):
        if pre is None:
            raise refused(source, f"prepares text for WordPiece with {', '.join(kinds + steps) or 'nothing'}")
        normalizers = [{}]
    normalizer = normalizers[0]
    if pre is None and not (
        normalizer.get("clean_text", True) and normalizer.get("handle_chinese_chars", True)
    ):
        raise refused(source, "keeps control characters or Chinese words together")
    lowercase = bool(normalizer.get("lowercase", True))
    accents = normalizer.get("strip_accents")
    flags = {
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }
    return Converted("bert", "default", rename=_word_start, flags=flags)


def _word_start(token: str) -> str:
    if token.startswith("##"):
        return token[2:]
    return token if token.startswith("[") and token.endswith("]") and len(token) > 2 else SPACE + token
