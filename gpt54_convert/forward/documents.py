"""Text cut into documents of token ids, the same for every model that is run on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError, MeasureError
from gpt54_convert.forward.batch import Document

_PREFIX = 96  # tokens that an encoder-decoder's encoder reads
_ENOUGH_DOCUMENTS, _ENOUGH_TOKENS = 8, 512


def tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint, as the tokenizers library runs it.

    Raises MeasureError where the checkpoint has none or the library is missing.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MeasureError(
            "tokenizers is not installed, so no text can be cut; pip install 'gpt54-convert[torch]'"
        ) from error
    content = checkpoint.tokenizer.get("tokenizer.json")
    if content is None:
        raise MeasureError(
            f"{checkpoint.source.path} has no tokenizer.json, so no text can be cut into tokens; put the "
            "model's own beside it"
        )
    try:
        found = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokenizer.json cannot be read: {error}") from error
    found.no_truncation()  # sentence encoders' files cut every text to 128 tokens, or fill it up to them
    found.no_padding()
    return found


def cut(text: str, checkpoint: Checkpoint, tokens: int, context: int) -> list[Document]:
    """Documents of up to `context` tokens, `tokens` in all, each starting at a paragraph.

    Every fourth one is shorter, so that batches are padded.
    Raises MeasureError where that is too little text to tell anything.
    """
    tokenize = tokenizer(checkpoint)
    kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "decoder"
    context = min(context, longest(checkpoint))
    vocab = int(checkpoint.config.get("vocab_size") or 1 << 31)
    found: list[Document] = []
    left = tokens
    for ids in _stretches(text, tokenize, context + _PREFIX + 1):
        if max(ids) >= vocab:
            raise MeasureError(
                f"tokenizer.json makes token {max(ids)}, but the model has {vocab}; get the model's own"
            )
        length = context * 5 // 8 if len(found) % 4 == 3 else context
        document = _document(ids, min(length, max(left, 16)), kind, tokenize, checkpoint)
        if document is not None:
            found.append(document)
            left -= len(document.tokens)
        if left <= 0:
            break
    count = sum(len(document.tokens) for document in found)
    if len(found) < _ENOUGH_DOCUMENTS or count < _ENOUGH_TOKENS:
        raise MeasureError(
            f"{count} tokens in {len(found)} documents are too few to tell anything ({_ENOUGH_TOKENS} in "
            f"{_ENOUGH_DOCUMENTS} are needed); give a longer --text, more --tokens or a shorter --context"
        )
    return found


def longest(checkpoint: Checkpoint) -> int:
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if checkpoint.config.get(key):
            return int(checkpoint.config[key])
    return 1 << 31


def _stretches(text: str, tokenize: Any, count: int) -> Iterator[list[int]]:
    """Runs of whole paragraphs, each of `count` tokens or a little more; the last may be shorter."""
    held: list[str] = []
    size, need = 0, 4 * count
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        size += len(paragraph)
        if size < need:
            continue
        ids = tokenize.encode("\n\n".join(held), add_special_tokens=False).ids
        if len(ids) < count:
            need = max(need, int(1.1 * size * count / max(1, len(ids))))
            continue
        yield ids
        held, size = [], 0
    ids = tokenize.encode("\n\n".join(held), add_special_tokens=False).ids
    if ids:
        yield ids


def _document(
    ids: list[int], length: int, kind: str, tokenize: Any, checkpoint: Checkpoint
) -> Document | None:
    before, after = specials(tokenize)
    if kind == "encoder":
        body = ids[: length - len(before) - len(after)]
        return Document(np.array([*before, *body, *after]), np.empty(0, np.int64)) if body else None
    if kind == "encoder-decoder":
        prefix, rest = ids[:_PREFIX], ids[_PREFIX : _PREFIX + length]
        start = checkpoint.config.get("decoder_start_token_id", 0)
        if len(rest) < 8:
            return None
        return Document(np.array([start, *rest[:-1]]), np.array(rest), np.array(prefix))
    stream = [*before, *ids][: length + 1]
    if len(stream) < 8:
        return None
    return Document(np.array(stream[:-1]), np.array(stream[1:]))


def specials(tokenize: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    plain = tokenize.encode("a", add_special_tokens=False).ids
    full = tokenize.encode("a", add_special_tokens=True).ids
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return full[:at], full[at + len(plain) :]
    return [], []
