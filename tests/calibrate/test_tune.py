"""Scales trained through the whole model: gradients, models and grids, what is kept, resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gpt54_convert import archs, data, loaders, pipeline
from gpt54_convert.calibrate import solve, text, tune
from gpt54_convert.calibrate.factored import Factored, Switched
from gpt54_convert.calibrate.loss import Loss
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.calibrate.solution import Solution
from gpt54_convert.calibrate.store import Store
from gpt54_convert.core.report import Report
from gpt54_convert.errors import MeasureError
from gpt54_convert.forward.documents import cut
from gpt54_convert.forward.torch_model import TorchReference
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import GRIDS, grid
from gpt54_convert.recipe import Export, Quantize, Recipe

CHOICE = Calibration(calibration_samples=40, calibration_length=32)
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


class Heard(Report):
    def __init__(self) -> None:
        self.details, self.notes = [], []

    def detail(self, text: str) -> None:
        self.details.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def setup(folder: Path, where: Path, target: str, choice: Calibration = CHOICE, method: str = "rtn"):
    """A checkpoint, small batches of text, and a store as a walk would leave it."""
    checkpoint = loaders.load(folder)
    architecture, chosen = archs.by_name(checkpoint.architecture), grid(target)
    inner = {}
    for name, tensor in checkpoint.tensors.items():
        match = architecture.match(name)
        matrix = match and match.layer is not None and len(tensor.shape) == 2 and "relative" not in name
        if matrix and chosen.fits(tensor.columns):
            inner[name] = chosen
    store = Store(where / "codes-x")
    for name in inner:
        tensor = checkpoint.tensors[name]
        q = solver(method)(tensor.float_rows(0, tensor.row_count), chosen, None)
        store.save(name, [q], tensor.row_count)
    documents = text.documents(text.read(choice), checkpoint, choice)
    batches = [text.stack(documents[i : i + 5], i) for i in range(0, len(documents) - 4, 5)]
    return checkpoint, batches, Solution(inner, store=store), store


def loss_of(checkpoint, solution, documents) -> float:
    tensors = dict(checkpoint.tensors)
    for name, target in solution.inner.items():
        values = solution.store.load(name, target).dequantize()
        tensors[name] = replace(
            tensors[name],
            dtype="float32",
            read=lambda start, stop, values=values: values[start:stop],
            read_codes=None,
        )
    with Loss(checkpoint, documents) as loss:
        return loss.of(checkpoint.with_tensors(tensors))


@pytest.mark.parametrize(
    ("kind", "target", "changes"),
    [
        ("llama-bias", "int4-g32", {}),
        ("gpt2", "int3-g16-asym", {}),
        ("gpt54-tied", "int4-channel", {}),
        ("bert", "int3-g16", {}),
        ("llama", "q4_1", {"hidden_size": 64}),
        ("llama", "q2_k", WIDE),
        ("llama", "q3_k", WIDE),
    ],
)
def test_the_loss_on_held_out_batches_falls(kind, target, changes, tmp_path):
    _, folder = tiny.make(kind, **changes)
    checkpoint, batches, solution, store = setup(folder, tmp_path, target)
    held = [document for batch in tune.split(batches)[1] for document in batch.documents]
    before = loss_of(checkpoint, solution, held)
    heard = Heard()
    tune.tune(solution, store, checkpoint, batches, heard)
    after = loss_of(checkpoint, solution, held)  # by the measuring code, from the stored scales
    assert after < before * 0.99
    said = [float(word) for word in heard.details[0].split() if word[0].isdigit() and "." in word]
    np.testing.assert_allclose(said, [before, after], rtol=2e-2, atol=2e-5)
    for name, target_grid in solution.inner.items():
        old, new = store.load(name, target_grid), solution.store.load(name, target_grid)
        np.testing.assert_array_equal(old.codes, new.codes)
        assert new.scale.dtype == old.scale.dtype


@pytest.mark.parametrize("kind", ["llama-bias", "gpt2", "gpt54", "bert"])
def test_gradients_are_those_of_finite_differences(kind, tmp_path):
    _, folder = tiny.make(kind)
    checkpoint, batches, solution, store = setup(
        folder, tmp_path, "q4_1" if kind == "llama-bias" else "int3-g16"
    )
    with TorchReference(checkpoint) as reference:
        matrices = {
            name: Factored(lambda name=name: store.load(name, solution.inner[name]), keep=name[-8] == "j")
            for name in solution.inner
        }
        objective = tune.Objective(Switched(reference, matrices), checkpoint)
        assert set(objective.matrices) == set(solution.inner), "a matrix was not reached"
        objective.gradients(batches[0])
        for name in (min(matrices), max(matrices)):
            factor = matrices[name].factors["scale"]
            row = int(factor.grad.abs().amax(1).argmax())
            column = int(factor.grad[row].abs().argmax())
            sides = []
            for step in (0.02, -0.02):
                with torch.no_grad():
                    factor[row, column] = step
                sides.append(objective.of(batches[:1], lambda done: None))
            with torch.no_grad():
                factor[row, column] = 0
            difference = (sides[0] - sides[1]) / 0.04
            assert difference == pytest.approx(float(factor.grad[row, column]), rel=0.03), name


@pytest.mark.parametrize(
    "target", ["q4_1", "q2_k", "q4_k", "q6_k", "iq4_xs", "iq4_nl", "int8-g64-asym", "mxfp4"]
)
def test_products_are_those_of_the_dequantized_matrix(target):
    weight = np.random.default_rng(0).standard_normal((6, 512), dtype=np.float32)
    q = solver("rtn")(weight, GRIDS.get(target) or grid(target), None)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    for keep in (True, False):
        matrix = Factored(lambda: q, keep)
        assert bool(matrix.factors) == (target != "mxfp4")
        with torch.no_grad():
            for number, factor in enumerate(matrix.factors.values()):
                factor.add_(0.25 + number)
            moved = matrix.product(x, None, torch.float32).numpy()
            new = matrix.settle()()
            settled = matrix.product(x, None, torch.float32).numpy()
        np.testing.assert_allclose(settled, x.numpy() @ new.dequantize().T, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(moved, settled, rtol=5e-3, atol=0.1)


@pytest.mark.parametrize(
    ("target", "rate"), [("int8-g32", 0.3), ("int4-g32", 1e30)], ids=["worse", "no number"]
)
def test_scales_that_do_not_help_are_not_taken(target, rate, tmp_path, monkeypatch):
    _, folder = tiny.make("llama")
    checkpoint, batches, solution, store = setup(folder, tmp_path, target)
    monkeypatch.setattr(tune, "_RATE", rate)
    heard = Heard()
    tune.tune(solution, store, checkpoint, batches, heard)
    assert "not taken" in heard.details[0]
    for name, grid_ in solution.inner.items():
        np.testing.assert_array_equal(store.load(name, grid_).scale, solution.store.load(name, grid_).scale)


def test_a_quantized_model_that_answers_with_no_number_is_not_tuned(tmp_path):
    _, folder = tiny.make("llama")
    checkpoint, batches, solution, store = setup(folder, tmp_path, "int4-g32")
    name = next(iter(solution.inner))
    broken = store.load(name, solution.inner[name])
    store.save(name, [replace(broken, scale=broken.scale * np.float16(np.nan))], broken.shape[0])
    heard = Heard()
    tune.tune(solution, store, checkpoint, batches, heard)
    assert "nothing was tuned" in heard.notes[0]


def test_a_broken_float_model_is_refused(tmp_path):
    _, folder = tiny.make("llama")
    checkpoint, batches, solution, store = setup(folder, tmp_path, "int4-g32")
    norm = checkpoint.tensors["model.norm.weight"]
    broken = replace(norm, dtype="float32", read=lambda a, b: np.full(b - a, np.nan, np.float32))
    checkpoint = checkpoint.with_tensors({**checkpoint.tensors, norm.name: broken})
    with pytest.raises(MeasureError, match="float model's own answers"):
        tune.tune(solution, store, checkpoint, batches, Report())
    assert not (tmp_path / "codes-x-tuned").exists()


class StoppedError(Exception):
    pass


def test_an_interrupted_job_tunes_again_and_gives_the_same_bytes(tmp_path, monkeypatch):
    _, folder = tiny.make("llama")

    def run(output: Path) -> bytes:
        step = Quantize(scheme="int4", method="tune", calibration_samples=16, calibration_length=32)
        artifact = pipeline.run(
            Recipe(folder, step, Export(output=output, to=("gguf",), threads=1)), Report()
        )
        return next(artifact[0].folder.glob("*.gguf")).read_bytes()

    whole = run(tmp_path / "whole")
    true_save, saved = Store.save, []

    def break_off(store, name, *rest):
        if "tuned" in store.folder.name:
            saved.append(name)
            if len(saved) == 3:
                raise StoppedError
        true_save(store, name, *rest)

    monkeypatch.setattr(solve.Store, "save", break_off)
    with pytest.raises(StoppedError):
        run(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir() if not path.name.startswith(".")] == []
    assert not list((tmp_path / "parts").rglob("*-tuned")), "half a store has the name of a whole one"
    assert list((tmp_path / "parts").rglob("codes-*")), "the walk's codes are gone"
    monkeypatch.setattr(solve.Store, "save", true_save)
    assert run(tmp_path / "parts") == whole
    trained = []
    monkeypatch.setattr(tune, "_trained", lambda *args: trained.append(1) or {})
    assert run(tmp_path / "untuned") != whole and trained, "tuning changed nothing"


@pytest.mark.slow
def test_the_embedded_model_comes_closer_than_by_gptq(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_BATCH_TOKENS", 512)
    monkeypatch.setattr(tune, "_STEPS", 12)
    choice = Calibration(calibration_samples=40, calibration_length=64)
    folder = Path(data.__file__).parent / "gpt54-tiny"
    checkpoint, _, solution, _ = setup(folder, tmp_path / "unused", "int3-g32", choice)
    solve.solve([solution], checkpoint, "tune", choice, tmp_path, Report(), 1)
    documents = cut(data.text("heldout"), checkpoint, 1024, 128)
    tuned = loss_of(checkpoint, solution, documents)
    solution.store = Store(tmp_path / f"codes-{solution.key}")
    gptq = loss_of(checkpoint, solution, documents)

    assert tuned < gptq
