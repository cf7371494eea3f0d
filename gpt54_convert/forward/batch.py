"""What models are asked, in batches of documents, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Document:
    """A stretch of text as token ids.

    tokens [time]: what the model reads (an encoder-decoder: the decoder's input).
    targets [time]: the token that really follows each of them; empty for encoders.
    prefix [time] or None: what the encoder of an encoder-decoder reads.
    """

    tokens: Ids
    targets: Ids
    prefix: Ids | None = None


@dataclass(frozen=True)
class Batch:
    """Documents run together.  tokens, mask [batch, time]; mask is 1 where there is a token, 0 on padding.

    prefix, prefix_mask [batch, time] or None: the encoder's side of an encoder-decoder.
    first: the number of the first document among all.
    """

    documents: tuple[Document, ...]
    first: int
    tokens: Ids
    mask: Ids
    prefix: Ids | None
    prefix_mask: Ids | None

    @property
    def lengths(self) -> list[int]:
        return [len(document.tokens) for document in self.documents]


def stack(documents: list[Document], first: int) -> Batch:
    """Documents as one batch, padded at the end with zeros."""
    tokens, mask = _padded([document.tokens for document in documents])
    prefixes = [document.prefix for document in documents if document.prefix is not None]
    prefix, prefix_mask = _padded(prefixes) if prefixes else (None, None)
    return Batch(tuple(documents), first, tokens, mask, prefix, prefix_mask)


def _padded(rows: list[Ids]) -> tuple[Ids, Ids]:
    width = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return tokens, mask
