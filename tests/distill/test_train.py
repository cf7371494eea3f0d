"""Training beside a teacher: exact resume, honest losses, the same result however the work is cut."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from gpt54_convert import data, loaders, pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.distill import curve, windows
from gpt54_convert.distill.options import DistillTrain
from gpt54_convert.errors import ConvertError, InputError, OutputError, UsageError
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Recipe

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
from gpt54_convert.distill import losses  # noqa: E402

# Six steps of four windows, measured twice; checkpoints after every step.
FEW = {"tokens": 6 * 4 * 24, "context": 24, "batch": 4, "eval_every": 3, "patience": 0, "save_every": 0}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(data.text("heldout")[:30000])
    return path


def pair(variant):
    """A teacher, and a student of fewer layers that is pruned on the way."""
    _, folder = tiny.make(variant)
    return folder, (Prune(layers=1, layer_choice="last"),)


def train(variant, output, book, report=None, **options):
    """Run the recipe prune, distill-train on a tiny model; the trained model's checkpoint."""
    folder, passes = pair(variant)
    step = DistillTrain(text=(str(book),), **{**FEW, **options})
    recipe = Recipe(folder, Convert(), Export(output=output, to=("safetensors",), threads=1), (*passes, step))
    pipeline.run(recipe, report or Report())
    return loaders.load(output / "safetensors")


def weights(checkpoint):
    return {
        name: tensor.float_rows(0, tensor.row_count).reshape(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }


def assert_alike(one, other, start):
    """Two trainings went the same way: they differ by little of how far they went.

    Not element by element: where a gradient is nothing but rounding, Adam makes a step of its sign.
    """
    for name, values in one.items():
        moved = np.linalg.norm(values - start[name])
        assert moved > 0, name
        assert np.linalg.norm(values - other[name]) <= 0.05 * moved, name


def assert_same_course(one, other):
    """Losses and gradients of the first step, before anything small grows."""
    for name in ("loss", "kl", "ce", "hidden", "gradient_norm"):
        assert one["losses"][0][name] == pytest.approx(other["losses"][0][name], rel=1e-4), name


def record(output):
    return json.loads((output / "safetensors/training.json").read_text())


class Interrupted(Report):
    """Ctrl-C after so many steps."""

    def __init__(self, steps):
        self.left, self.notes = steps, []

    def progress(self, title, total_bytes):
        from contextlib import contextmanager

        @contextmanager
        def bar():
            yield self.count if title == "training" else lambda done: None

        return bar()

    def count(self, done):
        self.left -= bool(done)
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "adamw", "precision": "bf16"}, {"top_k": 9, "hidden": 0}]
)
def test_resuming_gives_the_same_weights_as_no_interruption(options, tmp_path, book):
    whole = train("gpt54", tmp_path / "whole", book, **options)
    stopped = Interrupted(4)
    with pytest.raises(KeyboardInterrupt):
        train("gpt54", tmp_path / "cut", book, stopped, **options)
    assert [path.name[:6] for path in (tmp_path / "cut").iterdir()] == [".work-"]
    again = Interrupted(0)
    resumed = train("gpt54", tmp_path / "cut", book, again, **options)
    # the step that was interrupted had not been saved yet
    assert any("goes on behind step 3 of 6" in note for note in again.notes), again.notes
    assert any("same command goes on behind step 3" in note for note in stopped.notes)
    files = [tmp_path / name / "safetensors/model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert record(tmp_path / "whole") == record(tmp_path / "cut")
    assert whole.config == resumed.config
    assert not list((tmp_path / "cut").glob(".work-*"))


@pytest.mark.parametrize("variant", ["gpt54", "llama-tied", "gpt2", "bert", "gemma3"])
def test_a_training_without_a_rate_gives_the_student_back(variant, tmp_path, book):
    """Every kind of model goes into training and out again unharmed, transposed and tied weights too."""
    folder, passes = pair(variant)
    made = weights(train(variant, tmp_path / "out", book, lr=1e-30))
    pipeline.run(Recipe(folder, Convert(), Export(tmp_path / "in", ("safetensors",)), passes), Report())
    before = weights(loaders.load(tmp_path / "in/safetensors"))
    assert made.keys() == before.keys()
    for name, values in made.items():
        assert np.allclose(values, before[name], rtol=1e-6), name


@pytest.mark.parametrize("variant", ["gpt54", "llama"])
def test_training_brings_the_student_nearer(variant, tmp_path, book):
    made = train(variant, tmp_path, book, tokens=20 * 4 * 24, eval_every=1, lr=0.003)
    measured = record(tmp_path)["measured"]
    assert measured[-1]["kl"] < 0.9 * measured[0]["kl"]
    note = made.config["gpt54_convert"]["distilled"]
    assert note["target_tokens"] == 20 * 4 * 24
    assert note["held_out_kl"] == pytest.approx(min(each["kl"] for each in measured), abs=1e-5)
    assert "Distilled: teacher" in (tmp_path / "safetensors/README.md").read_text()
    assert (tmp_path / "safetensors/training.svg").read_text().startswith("<svg")
    listed = json.loads((tmp_path / "safetensors/manifest.json").read_text())["outputs"]
    assert {"training.svg", "training.json"} <= {entry["name"] for entry in listed}


def test_the_measured_divergence_is_that_of_the_models(tmp_path, book):
    """Oracle: transformers' own logits of the folder that was written, in float64."""
    import transformers

    from gpt54_convert.forward.documents import tokenizer

    made = train("llama", tmp_path, book)
    teacher = loaders.load(pair("llama")[0])
    ids = tokenizer(teacher).encode(book.read_text(), add_special_tokens=False).ids
    ids = np.array(ids[len(ids) - len(ids) // 20 :])
    before = tokenizer(teacher).encode("a").ids[:1]
    count = (len(ids) - 25) // 24 + 1
    picked = sorted({int(i * count / 32) for i in range(32)})
    rows = torch.tensor(np.array([[*before, *ids[24 * i :]][:24] for i in picked]))
    logs = []
    for folder in (pair("llama")[0], tmp_path / "safetensors"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with torch.no_grad():
            logits = model(rows).logits.double().numpy()
        logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean()
    assert made.config["gpt54_convert"]["distilled"]["held_out_kl"] == pytest.approx(expected, rel=1e-3)


def test_gradients_that_add_up_are_those_of_one_batch(tmp_path, book):
    whole = weights(train("gpt54", tmp_path / "a", book, lr=0.003))
    parts = weights(train("gpt54", tmp_path / "b", book, lr=0.003, at_once=1))
    start = weights(train("gpt54", tmp_path / "c", book, lr=1e-30))
    assert_alike(whole, parts, start)
    assert_same_course(record(tmp_path / "a"), record(tmp_path / "b"))


def test_an_early_end_keeps_the_best_weights(tmp_path, book):
    made = train("gpt54", tmp_path, book, tokens=40 * 96, eval_every=1, patience=2, lr=3.0, optimizer="adamw")
    kls = [each["kl"] for each in record(tmp_path)["measured"]]
    assert len(kls) < 40
    assert min(kls[-2:]) >= min(kls[:-2])
    assert made.config["gpt54_convert"]["distilled"]["held_out_kl"] == pytest.approx(min(kls), abs=1e-5)


def test_a_cache_as_wide_as_the_vocabulary_changes_nothing(tmp_path, book):
    """And the teacher is asked once a window only, however often the text is read."""
    from gpt54_convert.distill import pair as pairs

    small = tmp_path / "small.txt"
    small.write_text(book.read_text()[:700])
    options = {"hidden": 0.0, "eval_text": book, "lr": 0.003, "tokens": 30 * 4 * 24, "eval_every": 30}
    asked = []
    answer = pairs.Teacher.answer

    def counted(self, batch, rows):
        asked.append(self.cache is not None and not self.cache.has(rows))
        return answer(self, batch, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs.Teacher, "answer", counted)
        cached = train("llama", tmp_path / "a", small, top_k=100000, **options)
    assert 0 < sum(asked) < len(asked) / 2
    assert all(np.isfinite(values).all() for values in weights(cached).values())
    first = record(tmp_path / "a")["losses"][0]["kl"]
    train("llama", tmp_path / "b", small, **options)
    assert first == pytest.approx(record(tmp_path / "b")["losses"][0]["kl"], rel=1e-4)


def test_first_weights_drawn_anew(tmp_path, book):
    """From scratch: the same seed gives the same weights, and none of the student's."""
    drawn = [weights(train("gpt54", tmp_path / name, book, from_scratch=True, lr=1e-30)) for name in "ab"]
    own = weights(train("gpt54", tmp_path / "c", book, lr=1e-30))
    for name, values in drawn[0].items():
        assert np.array_equal(values, drawn[1][name])
        assert not np.allclose(values, own[name], atol=1e-3), name


def test_losses_against_plain_loops():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(size=(2, 3, 7)), generator.normal(size=(2, 3, 9))
    total = 0.0
    for row in range(2):
        for time in range(3):
            p = np.exp(theirs[row, time, :7] / 2)
            q = np.exp(ours[row, time] / 2)
            p, q = p / p.sum(), q / q.sum()
            total += sum(p[i] * np.log(p[i] / q[i]) for i in range(7)) * 4 / 6
    tensors = torch.tensor(ours), torch.tensor(theirs)
    assert float(losses.divergence(*tensors, 2.0)) == pytest.approx(total, rel=1e-5)
    kept = losses.top(tensors[1], 2.0, 7, 7)
    assert float(losses.top_divergence(tensors[0], *kept, 2.0, 7)) == pytest.approx(total, rel=1e-4)
    few = float(losses.top_divergence(tensors[0], *losses.top(tensors[1], 2.0, 3, 7), 2.0, 7))
    assert 0 < few < total
    states = torch.tensor(generator.normal(size=(1, 50, 4)))
    matrix = torch.tensor(generator.normal(size=(6, 4)))
    fit = losses.Fit()
    for part in states.split(10, 1):
        fit.add(part, losses.unit(part).double() @ matrix.T)
    fitted = fit.matrix()
    alike = (fitted @ torch.ones(4), matrix.float() @ torch.ones(4))
    assert torch.nn.functional.cosine_similarity(*alike, 0) > 0.9


def test_every_window_is_seen_once_a_pass_and_processes_share_them():
    ids = np.arange(1000, dtype=np.uint32)
    made = windows.Windows(ids, 24, "decoder", (7,), seed=3)
    steps = made.count // 4
    seen = [number for step in range(steps) for number in made.of_step(step, 4)]
    assert len(set(seen)) == len(seen) and max(seen) < made.count
    later = made.of_step(made.count, 4)
    assert min(later) >= made.count and later == made.of_step(made.count, 4)
    batch = made.batch(seen[:3])
    for number, document in zip(seen[:3], batch.documents, strict=True):
        assert document.tokens.tolist() == [7, *range(24 * number, 24 * number + 23)]
        assert document.targets.tolist() == list(range(24 * number, 24 * number + 24))
    both = windows.Windows(ids, 24, "encoder-decoder", start=5).batch([1]).documents[0]
    assert both.prefix.tolist() == list(range(24, 120))
    assert both.targets.tolist() == list(range(120, 144)) and both.tokens.tolist() == [5, *range(120, 143)]


def test_text_streams_in_pieces(tmp_path):
    path = tmp_path / "long.txt"
    text = "".join(f"line {i} ünd more\n" for i in range(150000))
    path.write_text(text, encoding="utf-8")
    pieces = list(windows.chunks([path, path], ""))
    assert "".join(pieces) == 2 * text
    assert max(map(len, pieces)) < 2 << 20 and len(pieces) >= 4
    assert all(piece.endswith("\n") for piece in pieces)


def test_the_curve_is_drawn():
    points = [(float(i), 5.0 / (1 + i)) for i in range(100)]
    picture = curve.svg("a < b", {"loss": points, "held-out": points[::10]}, "step", "nats").decode()
    from xml.etree import ElementTree

    lines = ElementTree.fromstring(picture).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [100, 10]
    drawn = curve.text(points)
    assert drawn[0].count("█") < drawn[-1].count("█") and len(drawn) == 6


@pytest.mark.parametrize(
    ("variant", "options", "words"),
    [
        ("gpt54", {"tokens": 0}, "--tokens must be at least 1"),
        ("gpt54", {"kl": 0.0, "ce": 0.0, "hidden": 0.0}, "one of them more than 0"),
        ("gpt54", {"temperature": 0.0}, "--temperature must be more than 0"),
        ("gpt54", {"top_k": 8}, "give --hidden 0"),
        ("gpt54", {"warmup": 1.0}, "--warmup is a share"),
        ("gpt54", {"context": 5000}, "too few for one window"),
        ("bert", {"hidden": 0.0}, "give --hidden more than 0"),
        ("gpt54", {"text": ("nowhere.txt",)}, "nowhere.txt: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(variant, options, words, tmp_path, book):
    with pytest.raises((UsageError, InputError)) as caught:
        folder, passes = pair(variant)
        step = DistillTrain(**{"text": (str(book),), **FEW, **options})
        recipe = Recipe(folder, Convert(), Export(tmp_path / "out", ("safetensors",)), (*passes, step))
        pipeline.run(recipe, Report())
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "words"), [("llama", "must agree"), ("gpt54", "vocabularies do not match")]
)
def test_pairs_that_do_not_belong_together_are_refused(teacher, words, tmp_path, book):
    """A decoder for an encoder-decoder, and a student with another tokenizer."""
    _, folder = tiny.make(teacher)
    step = DistillTrain(teacher=folder, text=(str(book),), **FEW)
    recipe = Recipe(data.model_path(), Convert(), Export(tmp_path / "out", ("safetensors",)), (step,))
    with pytest.raises(ConvertError, match=words):
        pipeline.run(recipe, Report())


@pytest.mark.parametrize("limit_kib", [4, 300])
def test_a_full_disk_is_one_sentence(limit_kib, tmp_path, book):
    """Files may not grow beyond a limit: the text's ids do, or the checkpoint does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kib << 10, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            train("gpt54", tmp_path / "out", book)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out/safetensors").exists()


def test_a_plan_of_a_training_says_what_is_wrong(tmp_path):
    from click.testing import CliRunner

    from gpt54_convert.cli import cli

    _, folder = tiny.make("llama")
    words = ["distill", "train", "--student", str(folder), "--dry-run", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, words)
    assert "they must agree" in str(result.exception)  # with the embedded model as the teacher
    result = CliRunner().invoke(cli, [*words, "--teacher", str(folder)])
    assert result.exit_code == 0 and "exact size" in result.output
    assert not (tmp_path / "out").exists()


def launched(processes, output, book, student, teacher):
    """The command under `accelerate launch`, as users run it."""
    words = ["distill", "train", "--teacher", teacher, "--student", student, "--text", book, "-o", output]
    options = ["--tokens", 6 * 4 * 24, "--context", 24, "--batch", 4, "--patience", 0, "--device", "cpu"]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    start += [
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        0,
    ]
    start += ["--multi_gpu"] if processes > 1 else ["--cpu"]  # accelerate's word for several processes
    command = [*start, "-m", "gpt54_convert", *words, *options, "--lr", 0.003]
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return weights(loaders.load(output / "safetensors"))


@pytest.mark.slow
def test_two_processes_give_the_same_result_as_one(tmp_path, book):
    teacher, passes = pair("gpt54")
    pipeline.run(Recipe(teacher, Convert(), Export(tmp_path / "in", ("safetensors",)), passes), Report())
    student = tmp_path / "in/safetensors"
    one, two = (launched(count, tmp_path / str(count), book, student, teacher) for count in (1, 2))
    start = weights(loaders.load(student))
    assert_alike(one, two, start)
    both = record(tmp_path / "1"), record(tmp_path / "2")
    assert [each["processes"] for each in both] == [1, 2]
    assert_same_course(*both)
