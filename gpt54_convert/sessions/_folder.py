"""What sessions of model folders share: the folder's tokenizer, its special tokens and its longest text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.forward.documents import tokenizer
from gpt54_convert.loaders._folder import side_files

_LONGEST = 4096


class Words:
    """Tokenizer and configuration of a model folder."""

    def __init__(self, folder: Path) -> None:
        side = side_files(folder)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        generation = side.generation_config or {}
        self._tokenizer = tokenizer(
            Checkpoint({}, self.config, Source(folder, "safetensors"), tokenizer=side.tokenizer)
        )
        self._ends = _ids(generation.get("eos_token_id")) | _ids(self.config.get("eos_token_id"))
        start = generation.get("decoder_start_token_id", self.config.get("decoder_start_token_id"))
        self.decoder_start = 0 if start is None else int(start)
        longest = self.config.get("max_position_embeddings") or self.config.get("n_positions") or _LONGEST
        self.context = min(_LONGEST, int(longest))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def ends(self, token: int) -> bool:
        return token in self._ends


def _ids(value: Any) -> set[int]:
    if isinstance(value, int):
        return {value}
    return {int(token) for token in value} if isinstance(value, list) else set()
