"""Tokenizer files from before tokenizer.json, turned into the tokenizer.json that means the same.

Covered: vocab.json with merges.txt (GPT-2 and Qwen2), vocab.txt (BERT), and sentencepiece models (Llama,
Gemma, T5).  What a Python tokenizer class adds on its own is known for those classes only; others are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.tokenizers.keys import SPACE, TokenType
from gpt54_convert.tokenizers.parts import BYTE_LEVEL, added_token, bpe, spaced_bpe, unigram, wordpiece
from gpt54_convert.tokenizers.pretokenizers import row_named, to_json
from gpt54_convert.tokenizers.sentencepiece import BPE, UNIGRAM, SentencePieceModel, read_sentencepiece
from gpt54_convert.tokenizers.source import Source, checked, read_json, roles_of
from gpt54_convert.tokenizers.template import write_around

Json = dict[str, Any]

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_BYTE_LEVEL_CLASSES = {"": "gpt-2", "GPT2": "gpt-2", "PreTrained": "gpt-2", "Qwen2": "qwen2"}
_PLAIN_SENTENCEPIECE = frozenset(("", "T5", "Llama", "CodeLlama", "Gemma", "PreTrained", "MT5"))


def read_source(files: Mapping[str, bytes]) -> Source:
    """The tokenizer in `files`: tokenizer.json where there is one, else the older files."""
    config = read_json(files, "tokenizer_config.json") or {}
    roles = roles_of(files, config)
    tokenizer = read_json(files, "tokenizer.json")
    if tokenizer is not None:
        return Source("tokenizer.json", checked(tokenizer, "tokenizer.json"), config, roles)
    for name in _SENTENCEPIECE:
        if name in files:
            return _from_sentencepiece(files, name, config, roles)
    if "vocab.json" in files and "merges.txt" in files:
        return _from_byte_level(files, config, roles)
    if "vocab.txt" in files:
        return _from_vocab_txt(files, config, roles)
    raise InputError(
        "the model has no tokenizer files (tokenizer.json, tokenizer.model, spiece.model, vocab.json with "
        "merges.txt, or vocab.txt); add them, or save the tokenizer beside the model"
    )


def _class(config: Json) -> str:
    name = str(config.get("tokenizer_class") or "")
    return name.removesuffix("Fast").removesuffix("Tokenizer")


def _added(files: Mapping[str, bytes], config: Json) -> dict[str, tuple[int, bool]]:
    """Added tokens: text -> (id, special), from added_tokens.json and tokenizer_config.json."""
    added: dict[str, tuple[int, bool]] = {}
    for text, token_id in (read_json(files, "added_tokens.json") or {}).items():
        added[text] = (token_id, False)
    decoder = config.get("added_tokens_decoder")
    for token_id, token in (decoder if isinstance(decoder, dict) else {}).items():
        if not str(token_id).isdecimal() or not isinstance(token, dict):
            raise InputError("tokenizer_config.json (added_tokens_decoder) is damaged; fetch it again")
        added[str(token.get("content"))] = (int(token_id), bool(token.get("special")))
    return added


def _added_list(
    added: Mapping[str, tuple[int, bool]], roles: Mapping[str, str], vocabulary: Mapping[str, int]
) -> list[Json]:
    """`added_tokens`, with the special tokens of the roles among them."""
    named = {text: (vocabulary[text], True) for text in roles.values() if text in vocabulary}
    special = set(roles.values())
    merged = {**named, **added}
    return [
        added_token(token_id, text, is_special or text in special)
        for text, (token_id, is_special) in sorted(merged.items(), key=lambda item: str(item[1][0]).zfill(12))
    ]


def _from_byte_level(files: Mapping[str, bytes], config: Json, roles: dict[str, str]) -> Source:
    name = _class(config)
    pre = _BYTE_LEVEL_CLASSES.get(name)
    if pre is None:
        raise UnsupportedError(
            f"vocab.json and merges.txt of a {name}Tokenizer cannot be read without its own code; "
            "save the tokenizer with transformers, so that there is a tokenizer.json"
        )
    vocabulary = read_json(files, "vocab.json") or {}
    for role in ("bos", "eos", "unk") if pre == "gpt-2" else ("eos",):
        roles.setdefault(role, "<|endoftext|>")
    lines = _lines(files, "merges.txt")
    merges = [line for line in lines if line and not line.startswith("#version")]
    row = row_named(pre)
    tokenizer = {
        "added_tokens": _added_list(_added(files, config), roles, vocabulary),
        "normalizer": {"type": row.normalizer} if row.normalizer else None,
        "pre_tokenizer": to_json(row.steps),
        "post_processor": {**BYTE_LEVEL, "trim_offsets": False},
        "decoder": BYTE_LEVEL,
        "model": {**bpe(vocabulary, ()), "merges": merges},
    }
    return Source("vocab.json", checked(tokenizer, "vocab.json"), config, roles)


def _lines(files: Mapping[str, bytes], name: str) -> list[str]:
    try:
        return [line.rstrip("\r") for line in files[name].decode().split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}); fetch it again") from None


def _from_vocab_txt(files: Mapping[str, bytes], config: Json, roles: dict[str, str]) -> Source:
    lines = _lines(files, "vocab.txt")
    while lines and not lines[-1]:
        lines.pop()
    vocabulary: dict[str, int] = {}
    for token_id, token in enumerate(lines):
        if vocabulary.setdefault(token, token_id) != token_id:
            raise InputError(f"vocab.txt holds {token!r:.60} twice (line {token_id + 1}); fetch it again")
    for role in ("unk", "sep", "pad", "cls", "mask"):
        roles.setdefault(role, f"[{role.upper()}]")
    if not {roles["unk"], roles["cls"], roles["sep"]} <= set(vocabulary):
        raise InputError(
            "vocab.txt lacks [UNK], [CLS] or [SEP], so it is no vocabulary of a BERT; fetch it again"
        )
    lowercase = config.get("do_lower_case", True) is not False
    accents = config.get("strip_accents")
    parts = wordpiece(
        vocabulary,
        unknown=roles["unk"],
        first=(roles["cls"], vocabulary[roles["cls"]]),
        last=(roles["sep"], vocabulary[roles["sep"]]),
        lowercase=lowercase,
        strip_accents=accents if isinstance(accents, bool) else None,
    )
    tokenizer = {**parts, "added_tokens": _added_list(_added(files, config), roles, vocabulary)}
    return Source("vocab.txt", checked(tokenizer, "vocab.txt"), config, roles)


def _from_sentencepiece(files: Mapping[str, bytes], file: str, config: Json, roles: dict[str, str]) -> Source:
    model = read_sentencepiece(files[file], file)
    if _class(config) not in _PLAIN_SENTENCEPIECE:
        raise UnsupportedError(
            f"{file} of a {_class(config)}Tokenizer has its ids shifted by its own code; "
            "save the tokenizer with transformers, so that there is a tokenizer.json"
        )
    if model.whitespace_as_suffix:
        raise UnsupportedError(
            f"{file} puts spaces behind words, which GGUF cannot say; use another tokenizer"
        )
    vocabulary: dict[str, int] = {}
    for token_id, (piece, _, _) in enumerate(model.pieces):
        if vocabulary.setdefault(piece, token_id) != token_id:
            raise InputError(
                f"{file} holds {piece!r:.60} twice (ids {vocabulary[piece]} and {token_id}); mend it"
            )
    unknown = _unknown(model, file)
    for role, text in (("unk", unknown), ("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
        if text in vocabulary:
            roles.setdefault(role, text)
    added = {**_sentencepiece_added(model), **_added(files, config)}
    t5 = model.model_type == UNIGRAM and _class(config) in ("T5", "MT5")
    if t5:
        extra = config.get("extra_ids", 100)
        count = extra if isinstance(extra, int) else 0
        for at in range(count):  # T5's sentinels are counted from the end
            added.setdefault(f"<extra_id_{at}>", (len(vocabulary) + count - 1 - at, True))
    parts, scores = _sentencepiece_parts(model, vocabulary, unknown, file)
    end = (roles["eos"], vocabulary[roles["eos"]]) if roles.get("eos") in vocabulary else None
    start = (roles["bos"], vocabulary[roles["bos"]]) if roles.get("bos") in vocabulary else None
    around = write_around(None, end) if model.model_type == UNIGRAM else write_around(start, None)
    tokenizer = {**parts, "post_processor": around, "added_tokens": _added_list(added, roles, vocabulary)}
    return Source(file, checked(tokenizer, file), config, roles, scores)


def _unknown(model: SentencePieceModel, file: str) -> str:
    for piece, _, kind in model.pieces:
        if kind == TokenType.UNKNOWN:
            return piece
    raise InputError(f"{file} has no unknown piece; fetch it again")


def _sentencepiece_added(model: SentencePieceModel) -> dict[str, tuple[int, bool]]:
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return {
        # sentencepiece looks for its user-defined pieces in the text itself, where spaces are still spaces
        (piece.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else piece): (token_id, kind in special)
        for token_id, (piece, _, kind) in enumerate(model.pieces)
        if kind in special or kind == TokenType.USER_DEFINED
    }


def _sentencepiece_parts(
    model: SentencePieceModel, vocabulary: dict[str, int], unknown: str, file: str
) -> tuple[Json, dict[str, float] | None]:
    prefix = model.add_dummy_prefix
    if model.model_type == UNIGRAM:
        scored = [[piece, score] for piece, score, _ in model.pieces]
        merge_spaces = model.remove_extra_whitespaces
        parts = unigram(scored, vocabulary[unknown], model.charsmap, merge_spaces=merge_spaces, prefix=prefix)
        parts["model"]["byte_fallback"] = model.byte_fallback
        return parts, None
    if model.model_type != BPE:
        raise UnsupportedError(f"{file} is neither a Unigram nor a BPE model; use another tokenizer")
    if model.charsmap:
        raise UnsupportedError(
            f"{file} normalizes its text, which llama.cpp does not do for BPE; "
            "save a tokenizer.json with transformers and convert that with --pre default, if you accept it"
        )
    parts = spaced_bpe(vocabulary, (), unknown, prefix)
    parts["model"]["byte_fallback"] = model.byte_fallback
    return parts, {piece: score for piece, score, _ in model.pieces}
