"""What both directions share: a metadata key with its GGUF type, the token types, the special roles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

# Ours: tokenizer.json without vocabulary, merges and charsmap.  Readers that do not know it skip it; with it
# a tokenizer comes back with every flag it had (a few hundred bytes against megabytes for
# `tokenizer.huggingface.json`).
FRAME_KEY = "gpt54_convert.tokenizer_frame"
CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
CHAT_TEMPLATES_KEY = "tokenizer.chat_templates"

SPACE = "\u2581"  # sentencepiece's visible space


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (llama.h, enum llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Role in tokenizer_config.json -> name in `tokenizer.ggml.{name}_token_id` ("seperator" is GGUF's spelling).
ROLE_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}


@dataclass(frozen=True)
class GgufKey:
    """One metadata key: a plain Python value and a GGUF type name such as STRING or ARRAY:FLOAT32."""

    key: str
    value: Any
    type: str


def role_key(role: str) -> str:
    """The GGUF key that holds the token id of `role`."""
    return f"tokenizer.ggml.{ROLE_KEYS.get(role, role)}_token_id"


def byte_token(value: int) -> str:
    """Name of a byte-fallback token, `<0x0A>` for a line feed."""
    return f"<0x{value:02X}>"


BYTE_TOKENS = frozenset(byte_token(value) for value in range(256))


def filler(token_id: int) -> str:
    """Name of a row of the embedding that no token uses (the name is llama.cpp's convention)."""
    return f"[PAD{token_id}]"
