"""Outputs appear whole or not at all, and nothing that exists is lost."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from gpt54_convert.core import workspace
from gpt54_convert.core.workspace import MANIFEST, staged
from gpt54_convert.errors import InputError, OutputError


def fill(folder, text="new"):
    (folder / "a.bin").write_text(text)
    (folder / MANIFEST).write_text(json.dumps({"schema": "gpt54-convert/manifest/1"}))


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_publishes_whole(tmp_path):
    with staged(tmp_path / "new" / "out", ["gguf", "safetensors"], False) as folder:
        for name in ("gguf", "safetensors"):
            fill(folder / name)
            assert not (tmp_path / "new" / "out" / name).exists()
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["gguf", "safetensors"]
    assert (out / "gguf" / "a.bin").read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure), staged(tmp_path / "a" / "b", ["gguf"], False) as folder:
        fill(folder / "gguf")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_there(tmp_path):
    with staged(tmp_path, ["gguf"], False) as folder:
        fill(folder / "gguf", "old")
    (tmp_path / "mine.txt").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path, ["gguf"], True) as folder:
        fill(folder / "gguf")
        raise KeyboardInterrupt
    assert everything(tmp_path) == before


def test_existing_is_refused_without_overwrite(tmp_path):
    (tmp_path / "gguf").mkdir()
    with pytest.raises(OutputError, match="--overwrite"), staged(tmp_path, ["gguf"], False):
        pass


def test_overwrite_replaces_ours_only(tmp_path):
    with staged(tmp_path, ["gguf"], False) as folder:
        fill(folder / "gguf", "old")
    with staged(tmp_path, ["gguf"], True) as folder:
        fill(folder / "gguf", "new")
    assert (tmp_path / "gguf" / "a.bin").read_text() == "new"
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by"), staged(tmp_path, ["safetensors"], True):
        pass
    assert (tmp_path / "safetensors" / "thesis.txt").exists()


def test_second_rename_failing_puts_the_first_back(tmp_path, monkeypatch):
    with staged(tmp_path, ["gguf", "safetensors"], False) as folder:
        for name in ("gguf", "safetensors"):
            fill(folder / name, "old")
    before = everything(tmp_path)
    rename, failed = workspace.os.rename, []

    def failing_once(source, target):
        # The last move into place fails; moving the old one back must then succeed.
        if str(target) == str(tmp_path / "safetensors") and not failed:
            failed.append(target)
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(workspace.os, "rename", failing_once)
    with pytest.raises(OutputError, match="full"), staged(tmp_path, ["gguf", "safetensors"], True) as folder:
        for name in ("gguf", "safetensors"):
            fill(folder / name, "new")
    assert everything(tmp_path) == before


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"), staged(tmp_path / "file", ["gguf"], False):
        pass


def test_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="full"), staged(tmp_path / "o", ["gguf"], False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_space_is_checked_first(tmp_path):
    with pytest.raises(OutputError, match="bytes free"):
        workspace.check_space(tmp_path / "not" / "yet", 1 << 62)


def test_a_workspace_outlives_an_interruption_and_goes_with_success(tmp_path):
    with pytest.raises(KeyboardInterrupt), workspace.workspace(tmp_path, "abc") as folder:
        folder.mkdir()
        (folder / "layer-0").write_text("done")
        raise KeyboardInterrupt
    with workspace.workspace(tmp_path, "abc") as folder:
        assert (folder / "layer-0").read_text() == "done"
    assert not list(tmp_path.iterdir())


def test_a_workspace_goes_where_the_input_is_refused(tmp_path):
    with pytest.raises(InputError), workspace.workspace(tmp_path / "out", "abc") as folder:
        folder.mkdir(parents=True)
        raise InputError("tensor x: row 3 is nan")
    assert not list(tmp_path.iterdir())


WRITING = """
import sys, time
from pathlib import Path
from gpt54_convert.core.workspace import staged
with staged(Path(sys.argv[1]), ["gguf"], False) as folder:
    (folder / "gguf" / "a.bin").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def writer(output):
    """Another process in the middle of writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(output)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    killed, living = writer(tmp_path), writer(tmp_path)
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert len(list(tmp_path.glob(".partial-*"))) == 2
        (tmp_path / ".partial-mine").mkdir()  # without a lock of ours: somebody else's
        with staged(tmp_path, ["safetensors"], False) as folder:
            fill(folder / "safetensors")
            left = {path.name for path in tmp_path.iterdir()} - {folder.name}
            assert ".partial-mine" in left and len(left) == 2
            (other,) = left - {".partial-mine"}
            assert (tmp_path / other / "gguf" / "a.bin").read_text() == "half"
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
            process.stdout.close()
    with staged(tmp_path, ["gguf"], False) as folder:
        fill(folder / "gguf")
    assert {path.name for path in tmp_path.iterdir()} == {".partial-mine", "gguf", "safetensors"}


def test_a_disk_without_locks_is_written_to_and_not_swept(tmp_path, monkeypatch):
    def refuses(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    process = writer(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    monkeypatch.setattr(workspace.fcntl, "flock", refuses)
    with staged(tmp_path, ["gguf"], False) as folder:
        fill(folder / "gguf")
    assert len(list(tmp_path.glob(".partial-*"))) == 1 and (tmp_path / "gguf" / "a.bin").exists()
