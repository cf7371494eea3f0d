"""ONNX folders in the programs that people open them with, each in an environment of its own.

Compared are logits, since greedy generation of a tiny model proves nothing; generation is run as well.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peers import environments

from gpt54_convert.core.report import Report
from gpt54_convert.exporters import _genai_config
from gpt54_convert.forward.onnx_model import OnnxModel
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe

pytestmark = [pytest.mark.network, pytest.mark.slow]
TOKENS = [[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]]
MASK = [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
DECODER = [[0, 21, 22, 23], [0, 24, 25, 26]]
# The size of a head is one that every program finds in the config (optimum 0.1.0 divides the width by heads).
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "bert": {"hidden_size": 64, "intermediate_size": 96},
    "gpt54": {},
}


@functools.cache
def made(kind: str, scheme: str | None = None, **options: Any) -> Path:
    """The ONNX artifact of a tiny model."""
    folder = Path(tempfile.mkdtemp(prefix="gpt54-consumers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _, source = tiny.make(kind, **KINDS[kind])
    step = Convert() if scheme is None else Quantize(scheme=scheme)
    run(Recipe(source, step, Export(folder, to=("onnx",), **options)), Report())
    return folder / "onnx"


def wanted(kind: str) -> np.ndarray:
    """What torch answers to the padded batch, zero where there is padding."""
    model, _ = tiny.make(kind, **KINDS[kind])
    tokens, mask = torch.tensor(TOKENS), torch.tensor(MASK)
    with torch.no_grad():
        if kind == "gpt54":
            feed = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": torch.tensor(DECODER)}
            return model(**feed).logits.numpy()
        if kind == "bert":
            return (model(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]).numpy()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        return (found * mask[..., None]).numpy()


def answers(folder: Path, kind: str) -> np.ndarray:
    """What the folder's graphs answer in ONNX Runtime."""
    model = OnnxModel(folder, {"llama": "decoder", "bert": "encoder"}.get(kind, "encoder-decoder"), 1)
    tokens, mask = np.array(TOKENS), np.array(MASK)
    feed: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
    if kind == "gpt54":
        states = model._graphs[0].run(feed)["last_hidden_state"]
        feed = {
            "encoder_attention_mask": mask,
            "encoder_hidden_states": states,
            "input_ids": np.array(DECODER),
        }
        return model._graphs[1].run(feed)["logits"]
    graph = model._graphs[0]
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    feed |= {"token_type_ids": np.zeros_like(tokens), "position_ids": positions, **graph.empty_past(2)}
    answer = graph.run(feed)
    return answer["logits" if kind == "llama" else "last_hidden_state"] * mask[..., None]


def close(found: Any, kind: str, limit: float = 1e-4, exact: np.ndarray | None = None) -> bool:
    exact = wanted(kind) if exact is None else exact
    answer = np.array(found, np.float32).reshape(exact.shape)
    if kind != "gpt54":
        answer = answer * np.array(MASK)[..., None]
    return bool(np.abs(answer - exact).max() <= limit * np.abs(exact).max())


OPTIMUM = """
import json, sys, torch
import optimum.onnxruntime as ort
feed = json.load(sys.stdin)
kind, folder = feed["kind"], feed["folder"]
name = {"llama": "CausalLM", "gpt54": "Seq2SeqLM", "bert": "FeatureExtraction"}[kind]
model = getattr(ort, f"ORTModelFor{name}").from_pretrained(folder)
inputs = {"input_ids": torch.tensor(feed["tokens"]), "attention_mask": torch.tensor(feed["mask"])}
extra = {"decoder_input_ids": torch.tensor(feed["decoder"])} if kind == "gpt54" else {}
answer = model(**inputs, **extra)
values = answer.last_hidden_state if kind == "bert" else answer.logits
result = {"values": values.tolist()}
if kind != "bert":
    made = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True,
                          return_dict_in_generate=True)
    start = 1 if kind == "gpt54" else inputs["input_ids"].shape[1]
    result["generated"] = made.sequences[:, start:].tolist()
    result["steps"] = torch.stack(made.logits, dim=1).tolist()
print(json.dumps(result))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_optimum(kind: str) -> None:
    python = environments.python_with("optimum", environments.OPTIMUM, borrow=True)
    feed = {
        "kind": kind,
        "folder": str(made(kind)),
        "tokens": TOKENS,
        "mask": MASK,
        "decoder": DECODER,
    }
    found = environments.ask([python], OPTIMUM, feed)
    assert close(found["values"], kind)
    if kind != "bert":
        assert same_steps(kind, found["generated"], found["steps"])


def same_steps(kind: str, generated: list[list[int]], steps: Any) -> bool:
    """Whether each step's logits are torch's for what had been generated before it: the past on trial."""
    model, _ = tiny.make(kind, **KINDS[kind])
    tokens, mask, new = torch.tensor(TOKENS), torch.tensor(MASK), torch.tensor(generated)
    with torch.no_grad():
        if kind == "gpt54":
            before = torch.cat([torch.zeros_like(new[:, :1]), new[:, :-1]], 1)
            exact = model(input_ids=tokens, attention_mask=mask, decoder_input_ids=before).logits
        else:
            everything = torch.cat([tokens, new[:, :-1]], 1)
            known = torch.cat([mask, torch.ones_like(new[:, :-1])], 1)
            positions = (known.cumsum(1) - 1).clamp(min=0)
            answer = model(input_ids=everything, attention_mask=known, position_ids=positions)
            exact = answer.logits[:, tokens.shape[1] - 1 :]
    found = torch.tensor(steps)
    assert found.shape == exact.shape
    return bool((found - exact).abs().max() <= 1e-4 * exact.abs().max())


GENAI = """
import json, sys
import numpy as np, onnxruntime_genai as og
feed = json.load(sys.stdin)
model = og.Model(feed["folder"])
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(feed["tokens"]) + 6, min_length=len(feed["tokens"]) + 6)
generator = og.Generator(model, parameters)
generator.append_tokens(np.array([feed["tokens"]]))
steps = []
for _ in range(6):
    steps.append(np.array(generator.get_logits()).reshape(-1).tolist())
    generator.generate_next_token()
ids = list(map(int, tokenizer.encode(feed["text"])))
generated = list(map(int, generator.get_sequence(0)))
print(json.dumps({"steps": steps, "generated": generated, "ids": ids, "text": tokenizer.decode(ids)}))
"""


@pytest.mark.parametrize("graph", ["model_in_place.onnx", "model.onnx"])
@pytest.mark.parametrize("scheme", [None, "int4"])
def test_onnxruntime_genai(scheme: str | None, graph: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    python = environments.python_with("genai", environments.GENAI, borrow=False)
    folder = made("llama", scheme)
    told = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["filename"]
    assert told == "model_in_place.onnx"
    if graph != told:
        folder = alone(folder, tmp_path / "alone")
    text = "Hello wonderful world 12"
    feed = {"folder": str(folder), "tokens": TOKENS[0], "text": text}
    found = environments.ask([python], GENAI, feed)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found["ids"] == own.encode(text, add_special_tokens=False).ids and found["text"].endswith(text)
    assert len(found["generated"]) >= len(TOKENS[0]) + 5
    model, _ = tiny.make("llama", **KINDS["llama"])
    with torch.no_grad():
        exact = model(torch.tensor([found["generated"]])).logits[0]
    first = len(TOKENS[0]) - 1
    steps = np.array(found["steps"], np.float32)
    exact_steps = exact[first : first + len(steps)].numpy()
    error = np.abs(steps - exact_steps).max() / np.abs(exact_steps).max()
    assert error < (1e-4 if scheme is None else 0.5)


def alone(folder: Path, copy: Path) -> Path:
    """A decoder's folder as it is where there is no second graph."""
    shutil.copytree(folder, copy)
    (copy / "model_in_place.onnx").unlink()
    config = _genai_config.content(load(tiny.make("llama", **KINDS["llama"])[1]))
    (copy / "genai_config.json").write_text(json.dumps(config))
    return copy


GENAI_ROWS = """
import json, sys
import numpy as np, onnxruntime_genai as og
feed = json.load(sys.stdin)
model = og.Model(feed["folder"])
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=40, min_length=40, batch_size=2)
generator = og.Generator(model, parameters)
tokenizer = og.Tokenizer(model)
generator.append_tokens(tokenizer.encode_batch(feed["texts"]))
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps({"ids": [list(map(int, tokenizer.encode(text))) for text in feed["texts"]],
                  "rows": [list(map(int, generator.get_sequence(row))) for row in (0, 1)]}))
"""


def test_onnxruntime_genai_pads_rows_behind() -> None:
    """Two prompts of different lengths at once: what follows each is what follows it alone."""
    python = environments.python_with("genai", environments.GENAI, borrow=False)
    feed = {"folder": str(made("llama")), "texts": ["Hello wonderful world 12", "Hello"]}
    found = environments.ask([python], GENAI_ROWS, feed)
    model, _ = tiny.make("llama", **KINDS["llama"])
    for ids, row in zip(found["ids"], found["rows"], strict=True):
        new = row[max(map(len, found["ids"])) :]  # the shorter prompt is padded behind up to there
        with torch.no_grad():
            wanted = model.generate(
                torch.tensor([ids]), max_new_tokens=len(new), min_new_tokens=len(new), do_sample=False
            )
        assert len(new) > 3 and wanted[0, len(ids) :].tolist() == new, (found, wanted)


JAVASCRIPT = """
import { env, AutoTokenizer, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Tensor }
  from "@huggingface/transformers";
let text = "";
for await (const chunk of process.stdin) text += chunk;
const feed = JSON.parse(text);
env.allowRemoteModels = false;
env.localModelPath = feed.models;
const integers = (rows) => new Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)),
                                      [rows.length, rows[0].length]);
const kind = { llama: AutoModelForCausalLM, bert: AutoModel, gpt54: AutoModelForSeq2SeqLM }[feed.kind];
const model = await kind.from_pretrained(feed.name, { dtype: feed.dtype });
const tokenizer = await AutoTokenizer.from_pretrained(feed.name);
const inputs = { input_ids: integers(feed.tokens), attention_mask: integers(feed.mask) };
const extra = feed.kind === "gpt54" ? { decoder_input_ids: integers(feed.decoder) } : {};
if (feed.kind === "bert") extra.token_type_ids = integers(feed.tokens.map((row) => row.map(() => 0)));
const answer = await model({ ...inputs, ...extra });
const values = feed.kind === "bert" ? answer.last_hidden_state : answer.logits;
const result = { values: Array.from(values.data), ids: tokenizer.encode(feed.text) };
if (feed.kind !== "bert") {
  const made = await model.generate({ ...inputs, max_new_tokens: 6, min_new_tokens: 6, do_sample: false });
  result.generated = made.tolist().map((row) => row.map(Number));
}
console.log(JSON.stringify(result));
"""


@pytest.mark.parametrize(
    ("kind", "scheme", "dtype"),
    [("llama", "int4", "q4"), ("bert", "int8", "q8"), ("gpt54", None, "fp32"), ("gpt54", "int4", "q4")],
)
def test_transformers_js(kind: str, scheme: str | None, dtype: str) -> None:
    node = environments.node_modules()
    folder = made(kind, scheme, layout="transformers.js")
    feed = {
        "models": f"{folder.parent}/",
        "name": folder.name,
        "kind": kind,
        "dtype": dtype,
        "tokens": TOKENS,
        "mask": MASK,
        "decoder": DECODER,
        "text": "Hello world",
    }
    found = environments.ask([shutil.which("node") or "node"], JAVASCRIPT, feed, node)
    if scheme is None:
        assert close(found["values"], kind)
    else:  # the very graphs, in the same runtime under Python
        assert close(found["values"], kind, 1e-3, answers(folder, kind))
    if kind == "bert":
        return
    model, _ = tiny.make(kind, **KINDS[kind])
    with torch.no_grad():
        ours = model.generate(
            torch.tensor(TOKENS),
            attention_mask=torch.tensor(MASK),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
        ).tolist()
    if scheme is None:
        assert [row[-6:] for row in found["generated"]] == [row[-6:] for row in ours]
