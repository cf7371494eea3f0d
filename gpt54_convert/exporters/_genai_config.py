"""genai_config.json: what onnxruntime-genai must know of a decoder's graph to generate with it.

Source: the configurations that onnxruntime-genai's own builder writes, and what its reader accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint

FILE = "genai_config.json"
# Its names of decoders whose graph is called as ours are; any other one is driven alike under the first name
# (its own "gpt2" wants keys and values of a layer in one array).
_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_SEARCH = {
    "do_sample": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


# Buffers of keys and values are as long as the longest answer that is asked for, from the first token on.
_BUFFERED = 4096
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")


def longest_text(config: Mapping[str, Any]) -> int:
    """The longest text that a model was made for, in tokens."""
    return int(next((config[key] for key in _CONTEXT if config.get(key)), 2048))


def content(checkpoint: Checkpoint, in_place: tuple[str, int] | None = None) -> dict[str, Any] | None:
    """The file's content; None where onnxruntime-genai cannot run the model.

    in_place: the graph that writes keys and values in place, and how long a text it takes, where there is
    one; else `model.onnx` is named.
    """
    architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None
    if architecture is None or architecture.kind != "decoder":
        return None
    sizes = architecture.sizes(checkpoint.config)
    own = str(checkpoint.config.get("model_type", ""))
    filename, limit = in_place or ("model.onnx", 0)
    longest = longest_text(checkpoint.config)
    longest = min(longest, limit) if in_place else longest
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": filename,
        "head_size": sizes["head_dim"],
        "hidden_size": sizes["width"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **({} if in_place else {"position_ids": "position_ids"}),
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes.get("kv_heads", sizes["heads"]),
    }
    return {
        "model": {
            **_special(checkpoint),
            "context_length": longest,
            "decoder": decoder,
            "type": own if own in _TYPES else _TYPES[0],
            "vocab_size": sizes["vocab"],
        },
        "search": {
            **_search(checkpoint.generation_config or {}),
            "diversity_penalty": 0.0,
            "early_stopping": True,
            "max_length": min(longest, _BUFFERED) if in_place else longest,
            "past_present_share_buffer": in_place is not None,
        },
    }


def _special(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special tokens; the reader takes no null, and pads with the end where nothing else is said."""
    found: dict[str, Any] = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for place in (checkpoint.generation_config or {}, checkpoint.config):
            if place.get(key) is not None:
                found[key] = place[key]
                break
    end = found.get("eos_token_id", 0)
    end = end[0] if isinstance(end, list) and end else end
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, **found}


def _search(generation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if generation.get(key) is None else generation[key] for key, value in _SEARCH.items()}
