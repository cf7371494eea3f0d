"""Tiny tokenizers of the kinds that the described architectures use, trained in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

TEXT = (
    "The quick brown fox jumps over the lazy dog. It was 1984, and the clocks were striking thirteen! "
    "In the beginning there was nothing, which exploded; nobody knows why it did (or whether it should). "
    "Café naïve façade — 12345 + 67890 = 80235?  Two  spaces,\n\nnew lines\tand tabs. "
    "def main(argument):\n    return argument * 2  # it's a comment, isn't it?\n"
    "Whether we're going there or they'll come here, the model's words are the same words again and again. "
    "Ελληνικά, русский, 中文, 日本語 and emoji 🙂."
)
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


def write(kind: str, folder: Path) -> dict[str, Any]:
    """Save tokenizer.json and tokenizer_config.json of `kind` in `folder`.

    Answers the config entries that follow from it: vocab_size and the ids of special tokens.
    """
    content, special = _trained(kind)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    vocab = _ids(json.loads(content))
    names = {f"{use}_token": token for use, token in special.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256, **names}
    if kind in ("llama3", "gemma"):
        config["add_bos_token"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {f"{use}_token_id": vocab[token] for use, token in special.items() if use in ("bos", "eos", "pad")}
    return {"vocab_size": max(vocab.values()) + 1, **ids}


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocab = tokenizer["model"]["vocab"]
    found = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    found.update((token["content"], token["id"]) for token in tokenizer["added_tokens"])
    return found


@lru_cache
def _trained(kind: str) -> tuple[str, dict[str, str]]:
    tokenizer, special = _KINDS[kind]()
    return tokenizer.to_str(pretty=True), special


def _lines() -> list[str]:
    return [TEXT[start:] for start in range(0, len(TEXT), 40)]


def _byte_bpe(regex: str | None, special: dict[str, str], bos: bool) -> tuple[Any, dict[str, str]]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    if regex is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    if bos:
        first = special["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A",
            pair=f"{first} $A {first} $B",
            special_tokens=[(first, tokenizer.token_to_id(first))],
        )
    return tokenizer, special


def _gpt2() -> tuple[Any, dict[str, str]]:
    return _byte_bpe(None, {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}, bos=False)


def _llama3() -> tuple[Any, dict[str, str]]:
    return _byte_bpe(LLAMA3_REGEX, {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}, bos=True)


def _qwen2() -> tuple[Any, dict[str, str]]:
    return _byte_bpe(QWEN2_REGEX, {"eos": "<|im_end|>", "pad": "<|endoftext|>"}, bos=False)


def _gemma() -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*special.values(), *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = _all_splits(content["model"])
    # the byte tokens are ordinary vocabulary, not special tokens
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
    )
    return tokenizer, special


def _all_splits(model: dict[str, Any]) -> list[list[str]]:
    """Every pair of tokens that makes a token, in the merges' order: as sentencepiece's models have them."""
    made = dict.fromkeys("".join(merge) for merge in model["merges"])
    vocab = model["vocab"]
    cuts = ((token[:cut], token[cut:]) for token in made for cut in range(len(token) - 1, 0, -1))
    return [[left, right] for left, right in cuts if left in vocab and right in vocab]


def _t5() -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=list(special.values()), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer, special


def _bert() -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=list(special.values()), show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer, special


_KINDS: dict[str, Callable[[], tuple[Any, dict[str, str]]]] = {
    "gpt2": _gpt2,
    "llama3": _llama3,
    "qwen2": _qwen2,
    "gemma": _gemma,
    "t5": _t5,
    "bert": _bert,
}
