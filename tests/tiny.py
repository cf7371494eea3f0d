"""Tiny random models, one kind per described architecture, for tests of every part.

`make("llama")` answers `(model, folder)`: a transformers model in float32 whose weights are all random
(norms and biases too, so that a forgotten one shows), and a folder as a model hub would serve it:
config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.  The same
name, seed and changes give the same bytes.  `VARIANTS` lists the tricky kinds: "llama-tied", "gpt54-tied", …
"""

from __future__ import annotations

import atexit
import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny_tokenizers

# architecture -> (transformers' prefix, model class suffix, config)
_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA3 = {
    **_DECODER,
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 128}
_BERT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
}
_T5 = {
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_heads": 3,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 128,
    "decoder_start_token_id": 0,
}

# name -> (class of the config, class of the model, tokenizer kind, config)
VARIANTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", "llama3", {**_DECODER, "head_dim": 24}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", "llama3", {**_DECODER, "tie_word_embeddings": True}),
    "llama-bias": (
        "LlamaConfig",
        "LlamaForCausalLM",
        "llama3",
        {**_DECODER, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-llama3": (
        "LlamaConfig",
        "LlamaForCausalLM",
        "llama3",
        {**_DECODER, "rope_parameters": _LLAMA3_ROPE},
    ),
    "llama-linear": (
        "LlamaConfig",
        "LlamaForCausalLM",
        "llama3",
        {**_DECODER, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama-yarn": ("LlamaConfig", "LlamaForCausalLM", "llama3", {**_DECODER, "rope_parameters": _YARN}),
    "mistral": ("MistralConfig", "MistralForCausalLM", "llama3", {**_DECODER, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", "qwen2", _DECODER),
    "qwen2-tied": ("Qwen2Config", "Qwen2ForCausalLM", "qwen2", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "qwen2", {**_DECODER, "head_dim": 32}),
    "qwen3-tied": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        "qwen2",
        {**_DECODER, "head_dim": 32, "tie_word_embeddings": True},
    ),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", "gemma", _GEMMA3),
    "gemma3-padded": ("Gemma3TextConfig", "Gemma3ForCausalLM", "gemma", {**_GEMMA3, "extra_vocab": 8}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", "gpt2", _GPT2),
    "bert": ("BertConfig", "BertModel", "bert", _BERT),
    "bert-mlm": ("BertConfig", "BertForMaskedLM", "bert", _BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        "bert",
        {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128},
    ),
    "gpt54": ("T5Config", "T5ForConditionalGeneration", "t5", {**_T5, "tie_word_embeddings": False}),
    "gpt54-tied": ("T5Config", "T5ForConditionalGeneration", "t5", {**_T5, "tie_word_embeddings": True}),
}
# Those that a GGUF file can hold.
GGUF = [name for name in VARIANTS if not name.startswith("distilbert")]
_kept: dict[str, tuple[Any, Path]] = {}


def make(
    architecture: str, folder: Path | None = None, *, seed: int = 0, dtype: str = "float32", **changes: Any
) -> tuple[Any, Path]:
    """A random model of `architecture` (a key of VARIANTS) and the folder it was saved in.

    folder: where to save; without one a temporary folder, made once per call with equal arguments.
    changes: config entries that replace the variant's own; `extra_vocab` pads the embedding's rows.
    The model is in float32 and evaluation mode; `dtype` is that of the saved file, and the model then
    holds the rounded values.
    """
    key = json.dumps([architecture, seed, dtype, changes], sort_keys=True)
    if folder is not None:
        return _build(architecture, folder, seed, dtype, changes), folder
    if key not in _kept:
        goal = _temporary()
        _kept[key] = (_build(architecture, goal, seed, dtype, changes), goal)
    model, goal = _kept[key]
    return copy.deepcopy(model), goal  # what one test does to its model is no other's business


def _temporary() -> Path:
    path = Path(tempfile.mkdtemp(prefix="gpt54-tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _build(architecture: str, folder: Path, seed: int, dtype: str, changes: dict[str, Any]) -> Any:
    import torch
    import transformers

    config_class, model_class, kind, options = VARIANTS[architecture]
    options = {**options, **changes}
    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokens = tiny_tokenizers.write(kind, folder)
    vocab = tokens.pop("vocab_size") + options.pop("extra_vocab", 0)
    config = getattr(transformers, config_class)(vocab_size=vocab, **tokens, **options)
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    untied_t5 = config_class == "T5Config" and options["tie_word_embeddings"] is False
    if untied_t5:  # transformers 5 ties every T5 that is built from a config
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    _randomise(model, seed)
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    model.float()
    _mend_saved(model, folder, dtype, options, untied_t5)
    return model


def _randomise(model: Any, seed: int) -> None:
    """Every parameter drawn anew, so that no norm is all ones and no bias all zeros."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() or ".ln_" in name
            if parameter.dim() == 1:
                base = (
                    1.0
                    if is_norm and name.endswith("weight") and "Gemma" not in type(model).__name__
                    else 0.0
                )
                parameter.copy_(base + 0.1 * noise)
            else:
                parameter.copy_(noise * (0.3 if "embed" in name or "shared" in name else 0.12))


def _mend_saved(model: Any, folder: Path, dtype: str, options: dict[str, Any], untied_t5: bool) -> None:
    """config.json as a hub would hold it: T5's tying as asked, and T5's own head stored."""
    from safetensors.torch import load_file, save_file

    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("transformers_version", "_name_or_path"):
        config.pop(key, None)
    if "d_model" in options:
        config["tie_word_embeddings"] = options["tie_word_embeddings"]
        model.config.scale_decoder_outputs = options["tie_word_embeddings"]
    path.write_text(json.dumps(config, indent=2) + "\n")
    if untied_t5:
        import torch

        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = model.lm_head.weight.detach().to(getattr(torch, dtype)).clone()
        weights.setdefault("shared.weight", model.shared.weight.detach().to(getattr(torch, dtype)).clone())
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
