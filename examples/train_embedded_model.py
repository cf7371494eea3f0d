"""Train the embedded model again: tokenizer, weights, configuration and metrics.

The model is a small T5 v1.1 (encoder-decoder) trained by prefix language modelling: the encoder
reads a window of text, the decoder continues it. The text is the one packaged in
``gpt54_convert.data``. The calibration novel picks the best checkpoint; the held-out novel is
only scored once, at the end. Needs torch, transformers, tokenizers and safetensors.

    python examples/train_embedded_model.py --output gpt54-tiny --minutes 60
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import T5Config, T5ForConditionalGeneration

from gpt54_convert import data

SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1, 2
PREFIX, TARGET = 96, 160  # tokens of the encoder and the decoder when a loss is reported
CHECKPOINT_SECONDS = 300
SHAPE = {
    "vocab_size": 2048,
    "d_model": 256,
    "d_kv": 32,
    "d_ff": 512,
    "num_heads": 8,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "use_cache": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def train_tokenizer(text: str, folder: Path) -> Tokenizer:
    """Train a byte-level BPE on ``text`` and write it to ``folder``."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(text.splitlines(keepends=True), trainer)
    tok.save(str(folder / "tokenizer.json"))
    names = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[1], "unk_token": SPECIAL[2]}
    write_json(folder / "special_tokens_map.json", names)
    extra = {"clean_up_tokenization_spaces": False}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", kind | names | extra)
    return tok


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def build_model() -> T5ForConditionalGeneration:
    """Build the untied model; transformers 5 ties the head whatever the configuration says."""
    model = T5ForConditionalGeneration(T5Config(**SHAPE))
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.shared.weight))
    torch.nn.init.normal_(model.shared.weight, std=0.5)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5 * SHAPE["d_model"] ** -0.5)
    assert not model.config.scale_decoder_outputs
    return model


def half_weights(model: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    state = {k: v for k, v in model.state_dict().items() if ".embed_tokens." not in k}
    return {k: v.detach().to(torch.float16).contiguous() for k, v in state.items()}


def save(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Write config.json, generation_config.json and float16 weights."""
    weights = folder / "model.safetensors"
    save_file(half_weights(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    head = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    more = {"dense_act_fn": "gelu_new", "is_gated_act": True, "dtype": "float16"}
    write_json(folder / "config.json", head | SHAPE | more)
    ids = {k: v for k, v in SHAPE.items() if k.endswith("_token_id")}
    write_json(folder / "generation_config.json", ids | {"max_new_tokens": TARGET})


def windows(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a stream into (prefix, target) pairs; every token past the first prefix is a target."""
    starts = range(0, len(ids) - PREFIX - TARGET + 1, TARGET)
    rows = torch.stack([ids[s : s + PREFIX + TARGET] for s in starts])
    return rows[:, :PREFIX], rows[:, PREFIX:].contiguous()


@torch.no_grad()
def evaluate(model: T5ForConditionalGeneration, ids: torch.Tensor) -> float:
    """Mean loss in nats per token of the weights as stored (float16), computed in float32."""
    copy = build_model().eval()
    copy.load_state_dict({k: v.float() for k, v in half_weights(model).items()}, strict=False)
    losses = []
    for prefix, target in zip(*(part.split(16) for part in windows(ids)), strict=True):
        losses.append(copy(input_ids=prefix, labels=target).loss * len(target))
    return float(sum(losses)) / len(windows(ids)[0])


def score(model: T5ForConditionalGeneration, tok: Tokenizer, ids: dict) -> dict:
    """Score the held-out novel, beside the add-one unigram distribution of the training tokens."""
    targets = windows(ids["heldout"])[1]
    lengths = torch.tensor([len(tok.id_to_token(i)) for i in range(SHAPE["vocab_size"])])
    per_byte = targets.numel() / (math.log(2) * int(lengths[targets].sum()))
    counts = torch.bincount(ids["train"], minlength=SHAPE["vocab_size"]).double() + 1
    unigram = float(-(counts / counts.sum()).log()[targets].mean())
    loss = evaluate(model, ids["heldout"])
    return {
        "heldout_loss": loss,
        "heldout_bits_per_byte": loss * per_byte,
        "unigram_loss": unigram,
        "unigram_bits_per_byte": unigram * per_byte,
        "heldout_target_tokens": targets.numel(),
        "prefix_tokens": PREFIX,
        "target_tokens_per_window": TARGET,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def optimizers(model: T5ForConditionalGeneration, args: argparse.Namespace) -> list:
    """Muon for the matrices inside the blocks, AdamW for the embeddings, the head and the rest."""
    matrix, table, rest = [], [], []
    for name, p in model.named_parameters():
        outer = name.startswith(("shared", "lm_head"))
        (table if outer else matrix if p.ndim == 2 and "_bias" not in name else rest).append(p)
    options = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 4}
    muon = torch.optim.Muon(matrix, lr=args.lr, **options)
    groups = [{"params": table, "lr": args.lr * 0.5, "weight_decay": 0.01}, {"params": rest}]
    return [muon, torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)]


def schedule(opts: list, peaks: list, step: int, done: float) -> None:
    """Set the learning rates: 50 steps of warm-up times a cosine over the part ``done``."""
    scale = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
    for opt, rates in zip(opts, peaks, strict=True):
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate * scale


def batch(ids: torch.Tensor, size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Draw ``size`` random windows whose prefixes have one random length, 32 to 128 tokens."""
    prefix = int(torch.randint(32, 129, (), generator=generator))
    offsets = torch.randint(0, len(ids) - prefix - TARGET + 1, (size,), generator=generator)
    rows = torch.stack([ids[o : o + prefix + TARGET] for o in offsets])
    return rows[:, :prefix], rows[:, prefix:].contiguous()


def train(model: T5ForConditionalGeneration, ids: dict, args: argparse.Namespace) -> dict:
    """Train until the steps or the minutes are used up; keep the checkpoint best on calibration."""
    opts = optimizers(model, args)
    peaks = [[g["lr"] for g in opt.param_groups] for opt in opts]
    generator = torch.Generator().manual_seed(args.seed)
    began = saved = time.monotonic()
    step, running, seen, best = 0, 0.0, 0, {"calibration_loss": math.inf}
    while True:
        minutes = (time.monotonic() - began) / 60
        done = max(step / args.steps, minutes / args.minutes)
        if done >= 1 or time.monotonic() - saved > CHECKPOINT_SECONDS:
            now = {"calibration_loss": evaluate(model, ids["calibration"][: 160 * 128])}
            now |= {"steps": step, "target_tokens": seen, "minutes": round(minutes, 1)}
            print(json.dumps(now), flush=True)
            if now["calibration_loss"] < best["calibration_loss"]:
                best = now
                save(model, args.output)
            saved = time.monotonic()
        if done >= 1:
            return best
        schedule(opts, peaks, step, done)
        prefix, target = batch(ids["train"], args.batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=prefix, labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step, seen, running = step + 1, seen + args.batch * TARGET, running + loss.item()
        if step % 50 == 0:
            spent = time.monotonic() - began
            print(f"step {step} loss {running / 50:.4f} tokens/s {seen / spent:.0f}", flush=True)
            running = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of the training")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stop after so many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--init", type=Path, help="folder of weights to continue from")
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--lr", type=float, default=8e-3, help="peak learning rate")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    texts = {split: data.text(split) for split in data.SPLITS}
    tok = train_tokenizer(texts["train"], args.output)
    ids = {split: torch.tensor(tok.encode(text).ids) for split, text in texts.items()}
    print({split: len(stream) for split, stream in ids.items()}, flush=True)

    model = build_model()
    if args.init:
        model.load_state_dict(load_file(args.init / "model.safetensors"), strict=False)
    best = train(model, ids, args)

    model.load_state_dict(load_file(args.output / "model.safetensors"), strict=False)
    metrics = score(model, tok, ids)
    metrics["training"] = best | {"seed": args.seed, "batch": args.batch, "lr": args.lr}
    write_json(args.output / "metrics.json", metrics)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
