"""The embedded model: its files, its tokenizer, its text, and that it has learnt something."""

from __future__ import annotations

import collections
import hashlib
import json
import math
import subprocess
import sys

import pytest

from gpt54_convert import data

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SHA256 = {
    "train": "eae1ffa1f7239e66d6338062c621282c2582b5810e9868e872da39b3ff1445c4",
    "calibration": "39dd16dc620790a64896a6ba671cc7e6255dc118f199a22738274348b074277c",
    "heldout": "ea05f5bd05c12e0b8a04e80ff9f65cb37920658ac47d07a58f615733f93664d2",
}


@pytest.fixture(scope="module")
def model():
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(
        data.model_path(), dtype=torch.float32, local_files_only=True
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(data.model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def stored():
    return safetensors_torch.load_file(data.model_path() / "model.safetensors")


def test_folder_holds_one_small_float16_weight_file(stored):
    weights = list(data.model_path().glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size < 15_000_000
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in stored.values())
    assert not [name for name in stored if ".embed_tokens." in name]
    assert {"shared.weight", "lm_head.weight"} <= set(stored)


def test_configuration():
    config = json.loads((data.model_path() / "config.json").read_text(encoding="utf-8"))
    expected = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "vocab_size": 2048,
        "d_model": 256,
        "d_kv": 32,
        "d_ff": 512,
        "num_heads": 8,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float16",
    }
    assert {key: config.get(key) for key in expected} == expected


def test_head_is_untied_and_unscaled(model, stored):
    assert model.lm_head.weight is not model.shared.weight
    assert not model.config.scale_decoder_outputs
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"].float())
    assert torch.equal(model.shared.weight, stored["shared.weight"].float())
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight
    assert sum(p.numel() for p in model.parameters()) == 7_346_176


def test_every_stored_tensor_is_the_loaded_one(model, stored):
    state = {k: v for k, v in model.state_dict().items() if ".embed_tokens." not in k}
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    "sample",
    [
        "",
        " ",
        "It is a truth universally acknowledged",
        "two  spaces, three   spaces, and a tab\t.\r\n\n\n  indented ",
        "quotes \"here\" -- it's , .don't",
        "\U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 caf\u00e9 na\u00efve",
        "\u6f22\u5b57 \u0645\u0631\u062d\u0628\u0627",
        "".join(map(chr, range(256))),
    ],
)
def test_tokenizer_round_trips(tokenizer, sample):
    ids = tokenizer(sample).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == sample
    assert not set(ids) & {0, 1, 2}


def test_tokenizer_ids(tokenizer):
    assert len(tokenizer) == 2048
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2)
    config = json.loads((data.model_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    plain = json.loads((data.model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    assert plain["post_processor"] is None
    assert len(plain["model"]["merges"]) == 2048 - 256 - 3


def slice_loss(model, ids, prefix, target):
    """Mean loss over consecutive windows, and the targets scored."""
    total, targets = 0.0, []
    for start in range(0, len(ids) - prefix - target + 1, target):
        encoder = torch.tensor([ids[start : start + prefix]])
        wanted = ids[start + prefix : start + prefix + target]
        decoder = torch.tensor([[0, *wanted[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=encoder, decoder_input_ids=decoder).logits[0]
        logp = torch.log_softmax(logits.double(), dim=-1)
        total -= sum(float(logp[at, token]) for at, token in enumerate(wanted))
        targets += wanted
    return total / len(targets), targets


def test_model_beats_the_unigram_baseline(model, tokenizer):
    held = tokenizer(data.text("heldout")[100_000:108_000]).input_ids
    loss, targets = slice_loss(model, held, prefix=96, target=160)
    assert len(targets) > 1_500
    counts = collections.Counter(tokenizer(data.text("train")).input_ids)
    total = sum(counts.values()) + 2048
    unigram = -sum(math.log((counts[t] + 1) / total) for t in targets) / len(targets)
    assert loss < unigram - 1.5, f"loss {loss:.3f}, unigram {unigram:.3f}"


def test_float16_stays_finite_and_close(model, tokenizer):
    half = transformers.T5ForConditionalGeneration.from_pretrained(data.model_path()).eval()
    assert half.dtype == torch.float16
    ids = torch.tensor([tokenizer(data.text("heldout")[5_000:6_500]).input_ids])
    given = {"input_ids": ids[:, :96], "decoder_input_ids": ids[:, 96:256]}
    with torch.no_grad():
        exact, near = model(**given).logits, half(**given).logits.float()
    assert bool(torch.isfinite(near).all())
    assert float((exact - near).abs().max()) < 0.25


def test_text_is_deterministic():
    for split, digest in SHA256.items():
        assert hashlib.sha256(data.text(split).encode("utf-8")).hexdigest() == digest


def test_text_is_made_of_paragraphs():
    for split in data.SPLITS:
        text = data.text(split)
        assert "\n\n\n" not in text and "  " not in text and text.endswith("\n")


@pytest.mark.parametrize(
    ("split", "other"),
    [("heldout", "train"), ("heldout", "calibration"), ("calibration", "train")],
)
def test_splits_do_not_overlap(split, other):
    # A shared window of 200 characters would hold a whole aligned block of 100 characters.
    text, long = data.text(split), data.text(other)
    blocks = {text[at : at + 100] for at in range(0, len(text), 100)}
    shared = [at for at in range(len(long) - 99) if long[at : at + 100] in blocks]
    assert not shared, f"{split} and {other} share text: {long[shared[0] : shared[0] + 100]!r}"


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no text split 'test'"):
        data.text("test")


def test_data_module_is_light():
    code = (
        "import sys; from gpt54_convert import data; data.text('heldout'); "
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
