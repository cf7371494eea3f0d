"""Figures, gates and verdicts on numbers that can be checked by hand."""

import json

import numpy as np
import pytest

from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.verify import gates
from gpt54_convert.verify.gates import Gate
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.tally import Measured, Tally
from gpt54_convert.verify.verdict import FAIL, PASS, UNKNOWN, Check, Verdict

RANDOM = np.random.default_rng(0)


def tally(reference, artifact, targets, kind="logits"):
    """A tally of documents given as [documents, time, vocab]."""
    found = Tally(kind)
    documents = [Document(row, row) for row in targets]
    found.add(stack(documents, 0), reference.astype(np.float32), artifact.astype(np.float32))
    return found


def logits(documents=12, time=20, vocab=7):
    return RANDOM.normal(size=(documents, time, vocab)), RANDOM.integers(0, vocab, (documents, time))


def test_figures_are_what_their_names_say():
    reference, targets = logits()
    artifact = reference + 0.3 * RANDOM.normal(size=reference.shape)
    figures = {k: f.value for k, f in tally(reference, artifact, targets).figures().items()}
    reference, artifact = reference.astype(np.float32), artifact.astype(np.float32)
    p = np.exp(reference) / np.exp(reference).sum(-1, keepdims=True)
    q = np.exp(artifact) / np.exp(artifact).sum(-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(-1)
    assert figures["kl_mean_nats"] == pytest.approx(kl.mean(), rel=1e-4)
    assert figures["kl_p95_nats"] == pytest.approx(np.quantile(kl, 0.95), rel=1e-4)
    assert figures["kl_max_nats"] == pytest.approx(kl.max(), rel=1e-4)
    assert figures["reverse_kl_mean_nats"] == pytest.approx((q * np.log(q / p)).sum(-1).mean(), rel=1e-4)
    assert figures["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    true = np.take_along_axis(q, targets[..., None], -1)
    assert figures["perplexity"] == pytest.approx(np.exp(-np.log(true).mean()), rel=1e-4)
    nmse = ((artifact - reference) ** 2).sum() / (reference**2).sum()
    assert figures["logits_nmse"] == pytest.approx(nmse, rel=1e-4)


def test_equal_answers_differ_by_nothing():
    reference, targets = logits()
    figures = tally(reference, reference + 5.0, targets).figures()  # a shift of all logits means nothing
    assert figures["kl_mean_nats"].value == pytest.approx(0, abs=1e-12)
    assert figures["top5_agreement"].value == 1
    assert figures["perplexity_ratio"].value == pytest.approx(1)


def test_padding_is_left_out():
    reference, targets = logits(2, 6)
    documents = [Document(targets[0], targets[0]), Document(targets[1][:2], targets[1][:2])]
    artifact = reference.copy()
    artifact[1, 2:] = np.nan
    found = Tally("logits")
    found.add(stack(documents, 0), reference.astype(np.float32), artifact.astype(np.float32))
    assert found.finite
    assert found.token_count == 8


def test_nan_is_never_measured():
    reference, targets = logits()
    artifact = reference.copy()
    artifact[3, 4, 0] = np.nan
    assert not tally(reference, artifact, targets).finite


def test_an_encoder_is_judged_by_its_hidden_states():
    reference, targets = logits()
    figures = tally(reference, 2 * reference, targets, "hidden").figures()
    assert figures["cosine_mean"].value == pytest.approx(1)
    assert figures["hidden_nmse"].value == pytest.approx(1, rel=1e-5)


def test_intervals_come_from_documents():
    """All tokens of a document alike: there are as many witnesses as documents, not as tokens."""
    reference, targets = logits(16, 50, 4)
    artifact = reference + RANDOM.normal(size=(16, 1, 1)) * np.array([1, 0, 0, 0])
    figure = tally(reference, artifact, targets).figures()["kl_mean_nats"].to_dict()
    assert figure["low"] < figure["value"] < figure["high"]
    assert figure["high"] - figure["low"] > 0.3 * figure["value"]


def measured(name, low, high):
    return {name: Measured(name, (low + high) / 2, np.linspace(low, high, 1000))}


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.01, 0.02, PASS), (0.07, 0.09, FAIL), (0.04, 0.06, UNKNOWN)]
)
def test_gates_judge_the_interval(low, high, outcome):
    found = measured("kl_mean_nats", low, high)
    assert gates.judge(Gate("kl_mean_nats", "<=", 0.05), found, {}).outcome == outcome
    opposite = {PASS: FAIL, FAIL: PASS, UNKNOWN: UNKNOWN}[outcome]
    assert gates.judge(Gate("kl_mean_nats", ">=", 0.05), found, {}).outcome == opposite


def test_relative_gates_compare_resample_by_resample():
    found, rtn = measured("kl_mean_nats", 0.01, 0.05), measured("kl_mean_nats", 0.0105, 0.0505)
    gate = Gate("kl_mean_nats", "<=", 1.0, "rtn")
    assert gates.judge(gate, found, {"rtn": rtn}).outcome == PASS
    assert gates.judge(gate, rtn, {"rtn": found}).outcome == FAIL
    assert gates.judge(gate, found, {}).outcome == UNKNOWN


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("kl_mean<=0.05", Gate("kl_mean_nats", "<=", 0.05)),
        ("kl_mean_nats <= 5e-2", Gate("kl_mean_nats", "<=", 0.05)),
        ("top1>=95%", Gate("top1_agreement", ">=", 0.95)),
        ("kl_mean<=1.1*rtn", Gate("kl_mean_nats", "<=", 1.1, "rtn")),
        ("kl_mean<=baseline", Gate("kl_mean_nats", "<=", 1.0, "baseline")),
    ],
)
def test_gates_are_read(text, gate):
    assert gates.parse(text, gates.figure_names("logits")) == gate


@pytest.mark.parametrize(
    "text", ["kl_mean", "kl_mean<0", "nonsense<=1", "kl_mean<=two", "cosine_mean>=1", ""]
)
def test_what_is_no_gate_is_refused(text):
    with pytest.raises(UsageError):
        gates.parse(text, gates.figure_names("logits"))


@pytest.mark.parametrize("bits", [32, 16, 8.5, 6.56, 5.5, 4.85, 4.5, 3.9, 2.6, 1.5])
def test_every_width_has_gates(bits):
    for kind in ("logits", "hidden"):
        names = {gate.figure for gate in gates.defaults(kind, bits, False)}
        assert names <= set(gates.figure_names(kind))
        assert len(names) == 2


def test_a_baseline_must_be_a_report(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": "gpt54-convert/verify/1", "kl_mean_nats": 0.5}))
    assert gates.read_baseline(path) == {"kl_mean_nats": 0.5}
    for content in ("{}", "[", '{"schema": "other"}'):
        path.write_text(content)
        with pytest.raises(InputError):
            gates.read_baseline(path)


def test_gates_that_cannot_be_judged_are_usage_errors():
    for options in (VerifyOptions(gate=("kl_mean<=baseline",)), VerifyOptions("tensors", ("kl_mean<=1",))):
        with pytest.raises(UsageError):
            gates.check_usage(options)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([PASS, PASS], 0), ([PASS, FAIL], 3), ([PASS, UNKNOWN], 4), ([UNKNOWN, FAIL], 3), ([], 4)],
)
def test_nothing_that_failed_exits_0(outcomes, code):
    checks = [Check("outputs", str(at), outcome, "") for at, outcome in enumerate(outcomes)]
    assert Verdict({}, checks).exit_code == code


def test_a_tenth_of_little_is_no_reason_to_fail():
    """Of a model that agrees with itself by chance alone, a point more or less says nothing."""
    found, rtn = measured("top1_agreement", 0.05, 0.07), measured("top1_agreement", 0.06, 0.09)
    relative = Gate("top1_agreement", ">=", 0.88).relative()
    assert gates.judge(relative, found, {"rtn": rtn}).outcome == PASS
    found, rtn = measured("top1_agreement", 0.70, 0.72), measured("top1_agreement", 0.90, 0.91)
    assert gates.judge(relative, found, {"rtn": rtn}).outcome == FAIL


def test_inputs_rounded_as_a_whole_are_judged_as_fewer_bits(tmp_path):
    """ONNX's w8a8 only: its int8 weights alone would be held to the gates of 8 bits."""
    from gpt54_convert.verify.artifact import Subject

    def subject(container, scheme):
        recipe = {"quantize": {"scheme": scheme}}
        return Subject(container, tmp_path, tmp_path, {"recipe": recipe}).rounds_inputs_whole

    assert subject("onnx", "w8a8") and subject("onnx", "W8A8")
    assert not subject("safetensors", "w8a8") and not subject("onnx", "int8") and not subject("onnx", None)
    loose = gates.defaults("logits", gates.WHOLE_INPUTS_BITS, False)
    tight = gates.defaults("logits", 8.5, False)
    assert [gate.figure for gate in loose] == [gate.figure for gate in tight]
    assert loose[0].factor == 2e-2 and tight[0].factor == 2e-3
