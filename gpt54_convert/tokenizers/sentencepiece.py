"""A reader for sentencepiece's `tokenizer.model`: a protobuf message of which a dozen fields matter here.

Field numbers from sentencepiece_model.proto (google/sentencepiece).  Its piece types are GGUF's token types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt54_convert.errors import InputError

UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces in id order as (text, score, type), and how text is normalized before."""

    pieces: list[tuple[str, float, int]]
    model_type: int
    byte_fallback: bool
    whitespace_as_suffix: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_sentencepiece(data: bytes, file: str) -> SentencePieceModel:
    """The model in `data`; InputError where it is none."""
    try:
        return _read(data)
    except (ValueError, IndexError, struct.error, TypeError, AttributeError):
        raise InputError(f"{file} is no sentencepiece model; fetch it again") from None


def _read(data: bytes) -> SentencePieceModel:
    pieces = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append(
                (piece[1].decode() if 1 in piece else "", _float(piece.get(2)), int(piece.get(3, 1)))
            )
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return SentencePieceModel(
        pieces=pieces,
        model_type=int(trainer.get(3, UNIGRAM)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def _float(raw: bytes | None) -> float:
    return 0.0 if raw is None else float(struct.unpack("<f", raw)[0])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("varint too long")
