"""Tokenizers in both directions: the files of a HF folder <-> the `tokenizer.*` metadata of GGUF.

Pure functions over bytes and plain values; nothing here imports tokenizers, transformers or torch.
"""

from gpt54_convert.tokenizers.export import to_gguf
from gpt54_convert.tokenizers.keys import GgufKey
from gpt54_convert.tokenizers.restore import from_gguf

__all__ = ["GgufKey", "from_gguf", "to_gguf"]
