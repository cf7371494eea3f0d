"""Model folders as users of transformers open them, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def model_of(kind: str, folder: Path, **options: Any) -> Any:
    """What a user's plain from_pretrained gives."""
    auto = {"gpt54": "Seq2SeqLM", "gpt54-tied": "Seq2SeqLM", "bert-mlm": "MaskedLM", "bert": ""}.get(
        kind, "CausalLM"
    )
    name = f"AutoModelFor{auto}" if auto else "AutoModel"
    return getattr(transformers, name).from_pretrained(folder, **options).eval()


def outputs(model: Any) -> torch.Tensor:
    """Logits (or hidden states) of two random sequences, float32."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, min(200, model.config.vocab_size), (2, 17), generator=generator)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=tokens, decoder_input_ids=tokens[:, :7]).logits.float()
        result = model(input_ids=tokens)
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state).float()
