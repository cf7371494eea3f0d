"""Model folders as users of transformers open them, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from gpt54_convert.core.checkpoint import Checkpoint


def model_of(kind: str, folder: Path, **options: Any) -> Any:
    """What a user's plain from_pretrained gives."""
    auto = {
        "gpt54": "Seq2SeqLM",
        "gpt54-tied": "Seq2SeqLM",
        "bert-mlm": "MaskedLM",
        "bert": "",
        "distilbert": "",
    }.get(kind, "CausalLM")
    name = f"AutoModelFor{auto}" if auto else "AutoModel"
    return getattr(transformers, name).from_pretrained(folder, **options).eval()


def loaded(kind: str, source: Path, checkpoint: Checkpoint) -> Any:
    """transformers' model in `source` with the checkpoint's tensors, in float32."""
    model = model_of(kind, source, dtype=torch.float32)
    state = model.state_dict()
    for name, tensor in checkpoint.tensors.items():
        key = next(k for k in (name, name.removeprefix("bert.")) if k in state)
        values = torch.from_numpy(tensor.float_rows(0, tensor.row_count).copy()).reshape(tensor.shape)
        conv1d = kind == "gpt2" and values.dim() == 2 and ".h." in name
        state[key].copy_(values.T if conv1d else values)
    return model


def outputs(model: Any) -> torch.Tensor:
    """Logits (or hidden states) of two random sequences, float32."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, min(200, model.config.vocab_size), (2, 17), generator=generator)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=tokens, decoder_input_ids=tokens[:, :7]).logits.float()
        result = model(input_ids=tokens)
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state).float()
