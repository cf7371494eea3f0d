"""The layer walk beside transformers: what enters every matrix, with float and with changed weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gpt54_convert import archs, loaders
from gpt54_convert.calibrate import collect, text
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.calibrate.walk import Walk
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError
from gpt54_convert.forward.torch_model import inputs
from gpt54_convert.verify import overlap

CHOICE = Calibration(calibration_samples=6, calibration_length=24)


class Visitor:
    moments = True

    def __init__(self, factor: float = 1.0, only_looks: bool = False) -> None:
        self.factor, self.only_looks = factor, only_looks
        self.seen, self.order, self.found = {}, [], {}

    def known(self, names):
        return {name: self.found[name] for name in names if name in self.found} or None

    def solve(self, weights, seen):
        self.seen |= seen
        self.order += list(seen)
        if not self.only_looks:
            self.found |= {name: weight * np.float32(self.factor) for name, weight in weights.items()}


def batches(checkpoint, together: int = 2):
    documents = text.documents(text.read(CHOICE), checkpoint, CHOICE)
    return [text.stack(documents[i : i + together], i) for i in range(0, len(documents), together)]


def expected(model, checkpoint, some, factor: float):
    """Input moments of every matrix, by hooks on the plain model, matrices within layers multiplied."""
    architecture = archs.by_name(checkpoint.architecture)
    sums, hooks, kept = {}, [], {}
    names = {name.removesuffix(".weight"): name for name in checkpoint.tensors}
    tied = next((stem for stem in ("model.embed_tokens", "transformer.wte", "shared") if stem in names), "")
    for path, module in model.named_modules():
        path = tied if path == "lm_head" and path not in names else path  # noqa: PLW2901
        spelled = next((p for p in (path, f"bert.{path}", path.removeprefix("bert.")) if p in names), None)
        if spelled is None or isinstance(module, torch.nn.Embedding) or module.weight.dim() != 2:
            continue
        name = names[spelled]
        match = architecture.match(name)
        if match is not None and match.layer is not None:
            kept[module] = module.weight.data.clone()
            module.weight.data *= factor

        def hook(module, args, name=name):
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.T @ x

        hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for batch in some:
            model(**inputs(batch))
    for each in hooks:
        each.remove()
    for module, weight in kept.items():
        module.weight.data = weight
    return {name: value.numpy() for name, value in sums.items()}


@pytest.mark.parametrize(
    "name",
    ["llama-bias", "llama-tied", "qwen2", "qwen3", "gemma3", "gpt2", "bert", "gpt54", "gpt54-tied"],
)
def test_every_matrix_meets_what_it_meets_in_the_model(name, tmp_path):
    model, folder = tiny.make(name)
    checkpoint = loaders.load(folder)
    some = batches(checkpoint)
    visitor = Visitor(only_looks=True)
    Walk(checkpoint, some, tmp_path, Report()).run(visitor)
    _agree(visitor, expected(model, checkpoint, some, 1.0), some)
    assert not list(tmp_path.iterdir()), "hidden states are left behind"


def _agree(visitor, reference, some):
    tokens = sum(batch.tokens.size for batch in some)
    for name, met in visitor.seen.items():
        found = (met.fit.moment * met.fit.tokens + met.held.moment * met.held.tokens).astype(np.float64)
        scale = np.abs(reference[name]).max()
        np.testing.assert_allclose(found, reference[name], atol=3e-5 * scale, err_msg=name)
        diagonal = np.diagonal(met.fit.moment)
        np.testing.assert_allclose(met.fit.mean_square, diagonal, rtol=1e-4, atol=1e-7)
        assert met.fit.tokens + met.held.tokens >= tokens
    left_out = {name for name in reference if name not in visitor.seen}
    assert all("pooler" in name or "rel" in name for name in left_out), left_out


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert", "gpt54"])
def test_layers_meet_the_states_of_the_layers_changed_before_them(name, tmp_path):
    """Each matrix sees changed layers before it and its own layer unchanged; the head sees all changed."""
    model, folder = tiny.make(name)
    checkpoint = loaders.load(folder)
    some = batches(checkpoint)
    visitor = Visitor(0.9)
    Walk(checkpoint, some, tmp_path, Report()).run(visitor)
    changed = expected(model, checkpoint, some, 0.9)
    heads = [n for n in visitor.seen if archs.by_name(checkpoint.architecture).match(n).layer is None]
    if name != "bert":
        assert heads
    for head in heads:
        met = visitor.seen[head]
        found = met.fit.moment * met.fit.tokens + met.held.moment * met.held.tokens
        np.testing.assert_allclose(found, changed[head], atol=1e-4 * np.abs(changed[head]).max())
        plain = expected(model, checkpoint, some, 1.0)[head]
        assert np.abs(plain - changed[head]).max() > 1e-3 * np.abs(plain).max()  # the test can fail


def test_cross_attention_meets_the_changed_encoder(tmp_path):
    model, folder = tiny.make("gpt54")
    checkpoint = loaders.load(folder)
    some = batches(checkpoint)
    visitor = Visitor(0.9)
    Walk(checkpoint, some, tmp_path, Report()).run(visitor)
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    assert visitor.order.index(name) > max(
        i for i, each in enumerate(visitor.order) if each.startswith("encoder.")
    )
    reference = expected(model, checkpoint, some, 0.9)[name]
    met = visitor.seen[name]
    found = met.fit.moment * met.fit.tokens + met.held.moment * met.held.tokens
    np.testing.assert_allclose(found, reference, atol=1e-4 * np.abs(reference).max())


def test_wide_matrices_cost_one_moment(tmp_path, monkeypatch):
    """Those of more columns than LARGE are judged by what they were fitted to."""
    monkeypatch.setattr(collect, "LARGE", 90)
    _, folder = tiny.make("llama")
    checkpoint = loaders.load(folder)
    visitor = Visitor(0.9)
    Walk(checkpoint, batches(checkpoint), tmp_path, Report()).run(visitor)
    wide, narrow = (visitor.seen[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("down", "up"))
    assert wide.held is wide.fit and wide.fit.moment is not None
    assert narrow.held is not narrow.fit


@pytest.mark.parametrize("name", ["llama", "gpt54"])
def test_tokens_count_by_their_weights(name, tmp_path):
    """Moments beside those of transformers' own inputs, token by token; matrices of one input share a sum."""
    model, folder = tiny.make(name)
    checkpoint = loaders.load(folder)
    some = batches(checkpoint)
    rng = np.random.default_rng(3)
    side = {"encoder": text.PREFIX}
    weights = {
        tensor: rng.random((6, side.get(tensor.partition(".")[0], 24))).astype(np.float32)
        for tensor in checkpoint.tensors
    }
    visitor = Visitor(only_looks=True)
    Walk(checkpoint, some, tmp_path, Report(), hold=False, weights=weights).run(visitor)
    layer = {"llama": "model.layers.1.mlp.", "gpt54": "encoder.block.1.layer.1.DenseReluDense."}[name]
    down, up, gate = {
        "llama": ("down_proj", "up_proj", "gate_proj"), "gpt54": ("wo", "wi_1", "wi_0")
    }[name]  # fmt: skip
    seen = {}
    for each in (down, up):
        module = model.get_submodule(layer + each)
        module.register_forward_pre_hook(lambda m, args, each=each: seen.setdefault(each, []).append(args[0]))
    with torch.no_grad():
        for batch in some:
            model(**inputs(batch))
    for each, owners in ((down, (down,)), (up, (up, gate))):
        x = torch.cat(seen[each]).flatten(0, 1).double().numpy()
        counted = sum(weights[f"{layer}{owner}.weight"] for owner in owners).reshape(-1)
        expected_moment = (x * counted[:, None]).T @ x / counted.sum()
        found = visitor.seen[f"{layer}{each}.weight"].fit
        bound = 3e-5 * np.abs(expected_moment).max()
        np.testing.assert_allclose(found.moment, expected_moment, atol=bound)
        np.testing.assert_allclose(found.mean_square, np.diagonal(expected_moment), atol=bound)


def test_an_activation_that_is_not_finite_is_named(tmp_path):
    _, folder = tiny.make("llama")
    checkpoint = loaders.load(folder)
    tensors = dict(checkpoint.tensors)
    name = "model.layers.0.mlp.up_proj.weight"
    broken = np.full(tensors[name].shape, np.inf, np.float32)
    from gpt54_convert.core import views

    tensors[name] = views.from_array(name, broken)
    with pytest.raises(InputError, match=r"enters model\.layers\.0\.mlp\.down_proj.*not finite"):
        Walk(checkpoint.with_tensors(tensors), batches(checkpoint), tmp_path, Report()).run(Visitor())


def read(path: Path, **changes):
    return text.read(Calibration(calibration=path, **changes))


def test_text_files(tmp_path):
    lines = tmp_path / "some.jsonl"
    lines.write_text('{"text": "one"}\n"two"\n\n{"prompt": "three", "id": 3}\n')
    assert read(lines) == "one\n\ntwo\n\nthree"
    lines.write_text('{"text": "one"}\n{"id": 3}\n')
    with pytest.raises(InputError, match="line 2 is neither"):
        read(lines)
    lines.write_text('{"text": "one"}\n{oops\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read(lines)
    lines.write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"line 1 is not JSON .*nested too deeply"):
        read(lines)
    lines.write_text('"whole"\n{"text": "cut \\ud83d"}\n')
    with pytest.raises(InputError, match="line 2 holds half a character"):
        read(lines)
    plain = tmp_path / "some.txt"
    with pytest.raises(InputError, match=r"some\.txt: No such file"):
        read(plain)
    plain.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read(plain)
    plain.write_text(" \n\n ")
    with pytest.raises(InputError, match="holds no text"):
        read(plain)


def test_lines_of_json_end_with_newlines_alone(tmp_path):
    """Strings may hold U+2028, U+0085 and the like as they are (JSON Lines); a byte order mark is no text."""
    inside = "a line\u2028that goes on behind a separator and is long enough to count\x85and more"
    for path in (tmp_path / "some.jsonl", tmp_path / "SOME.JSONL"):
        line = json.dumps({"text": inside}, ensure_ascii=False)
        path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
        assert read(path) == inside
        (entry,) = overlap.record([path])
        assert len(entry["line_hashes"]) == len(overlap.long_lines(inside)) == 1
    plain = tmp_path / "some.txt"
    plain.write_bytes(b"\xef\xbb\xbfone")
    assert read(plain) == "one"


@pytest.mark.parametrize("name", ["llama", "bert", "gpt54"])
def test_documents_are_of_one_length_and_drawn_by_the_seed(name):
    checkpoint = loaders.load(tiny.make(name)[1])
    whole = text.read(Calibration())
    found = text.documents(whole, checkpoint, CHOICE)
    assert len(found) == 6 and {len(each.tokens) for each in found} == {24}
    if name == "gpt54":
        assert {len(each.prefix) for each in found} == {text.PREFIX}
    again = text.documents(whole, checkpoint, CHOICE)
    other = text.documents(
        whole, checkpoint, Calibration(calibration_samples=6, calibration_length=24, calibration_seed=1)
    )
    same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True)]
    assert all(same)
    assert not all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, other, strict=True))
    short = text.documents("a", checkpoint, CHOICE)
    assert len(short) == 1 and len(short[0].tokens) >= 1


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_tokenizer_that_truncates_and_pads_gives_the_same_documents(name):
    """As those of sentence encoders do."""
    checkpoint = loaders.load(tiny.make(name)[1])
    content = json.loads(checkpoint.tokenizer["tokenizer.json"])
    content["truncation"] = {
        "direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    files = {**checkpoint.tokenizer, "tokenizer.json": json.dumps(content).encode()}
    found, wanted = (
        text.documents(text.read(CHOICE), each, CHOICE)
        for each in (replace(checkpoint, tokenizer=files), checkpoint)
    )
    assert [document.tokens.tolist() for document in found] == [each.tokens.tolist() for each in wanted]
