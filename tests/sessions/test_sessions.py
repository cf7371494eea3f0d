"""Text from artifacts in their own runtimes, held against transformers' own generation."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from gpt54_convert import data
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.sessions import _text, open_session
from gpt54_convert.sessions._options import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT = "She had always thought that "


def run(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "gpt54_convert", *map(str, words)], check=False, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def export(source, container, folder):
    run("convert", source, "--dtype", "float32", "--to", container, "-o", folder, "-q", "--no-verify")
    return folder / container


def expected(source, prompt, tokens):
    """transformers' greedy continuation."""
    config = transformers.AutoConfig.from_pretrained(source)
    auto = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = torch.tensor([tokenizer(prompt).input_ids])
    model = auto.from_pretrained(source, dtype=torch.float32)
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None)[0].tolist()
    return out[1:] if config.is_encoder_decoder else out[ids.shape[1] :]


def greedy(folder, prompt, tokens):
    session = open_session(folder, 1)
    written = _text.Written([])
    text = "".join(_text.write(session, prompt, Sampling(tokens=tokens), written))
    assert text == session.decode(written.ids)
    session.close()
    return written.ids


@pytest.mark.parametrize("container", ["safetensors", pytest.param("gguf", marks=pytest.mark.llama_cpp)])
def test_an_encoder_decoder_continues_as_transformers_does(container, tmp_path):
    source = data.model_path()
    assert greedy(export(source, container, tmp_path), PROMPT, 12) == expected(source, PROMPT, 12)


@pytest.mark.parametrize("container", ["safetensors", pytest.param("gguf", marks=pytest.mark.llama_cpp)])
def test_a_decoder_continues_as_transformers_does(container, tmp_path):
    source = tiny.make("llama")[1]
    assert greedy(export(source, container, tmp_path), "abc def", 12) == expected(source, "abc def", 12)


@pytest.mark.parametrize("kind", ["llama", "qwen2", pytest.param("gpt54", marks=pytest.mark.slow)])
def test_onnx_steps_give_the_logits_of_transformers(kind, tmp_path):
    model, source = tiny.make(kind)
    session = open_session(export(source, "onnx", tmp_path), 1)
    ids, later = [5, 6, 7, 8, 9], [21, 22, 23, 24]
    for _ in range(2):  # the second time from an empty memory again
        found = [session.start(ids), *(session.step(token) for token in later)]
        with torch.no_grad():
            if kind == "gpt54":
                decoder = torch.tensor([[session.decoder_start, *later]])
                exact = model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0]
            else:
                exact = model(torch.tensor([ids + later])).logits[0, len(ids) - 1 :]
        error = np.abs(np.stack(found) - exact.numpy()).max()
        assert error < 1e-4 * float(exact.abs().max())
        ids = ids[1:]


def test_an_encoder_does_not_write(tmp_path):
    folder = export(tiny.make("bert")[1], "safetensors", tmp_path)
    assert "does not write text" in run("generate", folder, "--prompt", "a", code=1).stderr


def test_json_and_refusals(tmp_path):
    folder = export(tiny.make("llama")[1], "safetensors", tmp_path)
    found = json.loads(run("generate", folder, "--prompt", "abc", "--tokens", 3, "--json").stdout)
    assert found["schema"] == "gpt54-convert/generate/1" and len(found["tokens"]) == 3
    assert "does not exist" in run("generate", tmp_path / "none", "--prompt", "a", code=1).stderr
    assert "no chat template" in run("generate", folder, "--prompt", "a", "--chat", code=1).stderr


def test_bench_measures_side_by_side(tmp_path):
    folder = export(tiny.make("llama")[1], "safetensors", tmp_path)
    done = run("bench", folder, folder, "--repeat", 1, "--prompt-tokens", 16, "--tokens", 4, "--json")
    rows = json.loads(done.stdout)["artifacts"]
    assert len(rows) == 1 or [row["container"] for row in rows] == ["safetensors"] * 2
    assert all(row["decode_tokens_per_s"] > 0 and row["peak_memory_bytes"] > 1e7 for row in rows)


def draw(logits, **changes):
    generator = np.random.default_rng(1)
    sampling = Sampling(**{"temperature": 1.0, **changes})
    return [_text.choose(np.array(logits, np.float32), sampling, generator) for _ in range(4000)]


def test_sampling_follows_the_probabilities():
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    shares = np.bincount(draw(logits, top_p=1.0, top_k=0), minlength=4) / 4000
    assert np.allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.03)
    assert set(draw(logits, top_p=1.0, top_k=2)) == {0, 1}
    assert set(draw(logits, top_p=0.6, top_k=0)) == {0, 1}  # the first that reaches 0.6 is still taken
    assert set(draw(logits, top_p=0.4, top_k=0)) == {0}
    assert set(draw(logits, temperature=0.0)) == {0}
    cold = np.bincount(draw(logits, temperature=0.5, top_p=1.0, top_k=0), minlength=4) / 4000
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    assert np.allclose(cold, squares / squares.sum(), atol=0.03)


def test_sampling_refuses_nonsense():
    with pytest.raises(InputError, match="NaN"):
        draw([0.0, float("nan")])
    with pytest.raises(UsageError, match="--top-p"):
        Sampling(top_p=0.0)
    with pytest.raises(UsageError, match="--temperature"):
        Sampling(temperature=-1.0)
