"""The commands as users meet them: output, exit codes, errors in one sentence, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from gpt54_convert.cli._terminal import print_table

# ONNX graphs are traced by torch, which takes seconds; what is the same for all containers is tested without.
LIGHT = ("--to", "gguf", "--to", "safetensors")


def run(*words, check=None, env=None, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "gpt54_convert", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    if check is not None:
        assert done.returncode == check, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def llama():
    return tiny.make("llama")[1]


def one_sentence(text):
    lines = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_tables_print_brackets_as_they_are(capsys):
    """What rich takes for markup is the name of an extra here."""
    print_table("of [torch]", ("what",), [("pip install 'gpt54-convert[llama-cpp]' :ok:",)])
    said = capsys.readouterr().out
    assert "gpt54-convert[llama-cpp]' :ok:" in said and "of [torch]" in said


def test_quantize_bits_4_writes_every_container(llama, tmp_path):
    """Each in its best scheme, its codes chosen by running the model."""
    few = ("--calibration-samples", 8, "--calibration-length", 32)
    done = run("quantize", llama, "--bits", 4, *few, "-o", tmp_path / "out", "--no-verify", check=0)
    assert "int4-g32" in done.stdout and "bpw" in done.stdout
    for container in ("gguf", "onnx", "safetensors"):
        manifest = json.loads((tmp_path / "out" / container / "manifest.json").read_text())
        assert manifest["container"] == container
        assert len(manifest["source"]["files"]) > 1
        assert manifest["recipe"]["quantize"]["method"] == "gptq"
        assert manifest["recipe"]["calibration"]["documents"] == 8
        assert manifest["recipe"]["scheme"] == ("mix4" if container == "gguf" else "int4")
        grids = {row["role"]: row["grid"] for row in manifest["tensors"]}
        four, head = ("iq4_nl", "q5_1") if container == "gguf" else ("int4-g32", "int8-g32")
        assert grids["attn.q"] == four and grids["head"] == head
        assert all(0 < r["relative_error"] < 0.2 for r in manifest["tensors"] if r["grid"] == four)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gguf", "onnx", "safetensors"]


def test_the_embedded_model_is_the_default(tmp_path):
    done = run("quantize", "--bits", 4, "--fast", "--json", *LIGHT, "--no-verify", cwd=tmp_path, check=0)
    found = json.loads(done.stdout)
    assert found["schema"] == "gpt54-convert/artifacts/1"
    assert [a["container"] for a in found["artifacts"]] == ["gguf", "safetensors"]
    assert "embedded model" in done.stderr
    assert (tmp_path / "dist" / "gguf" / "manifest.json").exists()


def test_same_input_same_bytes(llama, tmp_path):
    for name, threads in (("a", 1), ("b", 3)):  # the verdict in the manifest included
        run("quantize", llama, "--scheme", "int4", "-o", tmp_path / name, "--threads", threads, "-q", check=0)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


def test_dry_run_tells_the_exact_size_and_writes_nothing(llama, tmp_path):
    words = ("quantize", llama, "--scheme", "q4_k_m", "-o", tmp_path / "out", "--json", "--no-verify")
    planned = json.loads(run(*words, "--dry-run", check=0).stdout)
    assert not (tmp_path / "out").exists()
    done = json.loads(run(*words, check=0).stdout)
    assert planned["artifacts"][0]["totals"]["size_bytes"] == done["artifacts"][0]["totals"]["size_bytes"]
    real = sum(p.stat().st_size for p in (tmp_path / "out" / "gguf").glob("*.gguf"))
    assert planned["size_bytes"] == real


def test_dry_run_for_people(llama, tmp_path):
    done = run("quantize", llama, "--bits", 4, *LIGHT, "--dry-run", "-o", tmp_path / "out", check=0)
    assert "peak memory" in done.stdout and "exact size" in done.stdout and "attn.q" in done.stdout


def test_existing_output_is_refused_then_replaced(llama, tmp_path):
    words = ("quantize", llama, "--bits", 8, "--to", "gguf", "-o", tmp_path, "-q", "--no-verify")
    run(*words, check=0)
    assert "--overwrite" in one_sentence(run(*words, check=1).stderr)
    run(*words, "--overwrite", check=0)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("quantize", "nowhere"), 1, "does not exist"),
        (("quantize", "--bits", "7"), 2, "Invalid value"),
        (("quantize", "--bits", "4", "--scheme", "int4"), 2, "--bits and --scheme"),
        (("quantize", "--scheme", "q4_k_xl"), 2, "did you mean q4_k"),
        (("quantize", "--scheme", "best"), 2, "unknown scheme"),
        (("quantize", "--pre", "gpt-3"), 2, "did you mean gpt-2"),
        (("quantize", "--method", "magic"), 2, "unknown method"),
        (("quantize", "--fast", "--method", "gptq"), 2, "give one of them"),
        (("quantize", "--stats", "x.gguf"), 2, "add it"),
        (("quantize", "--to", "onyx"), 2, "unknown container"),
        (("quantize", "--keep", "head"), 2, "ROLE=GRID"),
        (("quantize", "--keep", "nose=q8_0"), 2, "no such role"),
        (("quantize", "--shard-size", "many"), 2, "is not a size"),
        (("quantize", "--scheme", "q2_k", "--to", "safetensors"), 1, "safetensors cannot hold"),
        (("convert", "--dtype", "float12"), 2, "Invalid value"),
        (("quantise",), 2, "Did you mean 'quantize'"),
        (("list", "grid"), 2, "grids"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(words, code, says, tmp_path):
    done = run(*words, cwd=tmp_path, check=code)
    assert says in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused_and_named(llama, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for path in llama.iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][5, 7] = np.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    said = one_sentence(run("quantize", broken, "--bits", 4, *LIGHT, "-o", tmp_path / "out", check=1).stderr)
    assert name in said
    assert not (tmp_path / "out").exists()


def test_unknown_architecture_goes_to_safetensors_and_gguf_says_what_to_add(llama, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    tensors = {"a.fc.weight": values, "a.table": values}  # the latter no module's weight: it stays float
    save_file(tensors, strange / "model.safetensors", {"format": "pt"})
    (strange / "config.json").write_text('{"model_type": "strange"}')
    run("quantize", strange, "--bits", 4, "-o", tmp_path / "out", check=0)
    written = load_file(tmp_path / "out" / "safetensors" / "model.safetensors")
    assert "a.fc.weight_packed" in written and written["a.table"].shape == (64, 64)
    said = one_sentence(run("quantize", strange, "--to", "gguf", "-o", tmp_path / "o2", check=1).stderr)
    assert "archs/" in said


def test_inspect(llama):
    found = json.loads(run("inspect", llama, "--json", check=0).stdout)
    assert found["schema"] == "gpt54-convert/inspect/1"
    assert found["architecture"] == "llama" and found["bits_per_weight"] == 32
    expected = sum(array.size for array in load_file(llama / "model.safetensors").values())
    assert found["parameters"] == expected
    assert "float32" in run("inspect", llama, "-v", check=0).stdout


def test_quantized_artifacts_can_be_inspected_and_converted_back(llama, tmp_path):
    run("quantize", llama, "--scheme", "int4", *LIGHT, "-o", tmp_path / "q", "-q", "--no-verify", check=0)
    gguf = next((tmp_path / "q" / "gguf").glob("*.gguf"))
    for artifact in (gguf, tmp_path / "q" / "safetensors"):
        found = json.loads(run("inspect", artifact, "--json", check=0).stdout)
        assert found["architecture"] == "llama" and 4 < found["bits_per_weight"] < 16
    for source, container, name in (
        (gguf, "safetensors", "a"),
        (tmp_path / "q" / "safetensors", "gguf", "b"),
    ):
        run("convert", source, "--to", container, "-o", tmp_path / name, "-q", "--no-verify", check=0)
    again = load_file(tmp_path / "a" / "safetensors" / "model.safetensors")
    first = load_file(tmp_path / "q" / "safetensors" / "model.safetensors")
    for name in first:
        if name.endswith(("weight_packed", "weight_scale")):
            assert np.array_equal(first[name], again[name]), name


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("qu", {"quantize"}),
        ("quantize --sch", {"--scheme"}),
        ("quantize --scheme q4", {"q4_k_m", "q4_k_s"}),
        ("quantize --to gg", {"gguf"}),
        ("quantize --method se", {"search"}),
        ("quantize --bits ", {"2", "3", "4", "5", "6", "8"}),
    ],
)
def test_shell_completion(typed, completed):
    """What click's script asks for at each Tab, through the entry point that pip installs."""
    code = "import sys; sys.argv[0] = 'gpt54-convert'; from gpt54_convert.cli import main; main()"
    env = {"COMP_WORDS": f"gpt54-convert {typed}", "COMP_CWORD": str(typed.count(" ") + 1)}
    env["_GPT54_CONVERT_COMPLETE"] = "bash_complete"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **env}
    )
    assert {line.removeprefix("plain,") for line in done.stdout.splitlines()} == completed


def test_an_artifact_keeps_the_models_name_and_is_not_replaced_while_it_is_read(llama, tmp_path):
    run("quantize", llama, "--bits", 8, "--name", "Mine", *LIGHT, "-o", tmp_path / "q", "-q", check=0)
    for container in ("gguf", "safetensors"):
        source = tmp_path / "q" / container
        run("convert", source, "--to", "gguf", "-o", tmp_path / container, "-q", check=0)
        made = next((tmp_path / container / "gguf").glob("*.gguf"))
        assert made.name.startswith("Mine-")
        words = ("convert", source, "--to", container, "-o", tmp_path / "q", "--overwrite")
        assert "is the model being read" in one_sentence(run(*words, check=1).stderr)


@pytest.mark.parametrize("what", ["architectures", "grids", "schemes", "methods", "formats"])
def test_lists(what):
    found = json.loads(run("list", what, "--json", check=0).stdout)
    assert len(found[what]) >= 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_runs_leave_nothing(sent, tmp_path):
    """Large enough that the signal arrives while tensors are being written."""
    _, folder = tiny.make("llama", tmp_path / "model", hidden_size=1024, intermediate_size=8192)
    command = [
        sys.executable,
        "-m",
        "gpt54_convert",
        "quantize",
        folder,
        "--scheme",
        "q4_k_m",
        "--threads",
        "1",
        "--to",
        "gguf",
    ]
    process = subprocess.Popen(
        [*map(str, command), "-o", tmp_path / "out"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background has told its children to ignore Ctrl-C, nohup to ignore hang-ups.
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    for _ in range(30_000):
        if list((tmp_path / "out").glob(".partial-*/*/*")) or process.poll() is not None:
            break
        time.sleep(0.002)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "no artifact was written" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fast", [True, False])
def test_a_full_disk_leaves_nothing_but_what_can_be_gone_on_with(fast, llama, tmp_path):
    """A file size limit stands in for the full disk: writes past it fail in the same place."""
    words = (*LIGHT, *(("--fast",) if fast else ("--calibration-samples", "8")))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"sys.argv = ['x', 'quantize', {str(llama)!r}, *{words!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "from gpt54_convert.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    one_sentence(done.stderr)
    if fast:
        assert not (tmp_path / "out").exists()
    else:
        assert [path.name[:6] for path in (tmp_path / "out").iterdir()] == [".work-"]
        assert "is kept in" in done.stderr and "goes on from there" in done.stderr
