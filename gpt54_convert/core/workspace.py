"""Outputs appear whole or not at all, and nothing that exists is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt54_convert.errors import InputError, OutputError, UnsupportedError, UsageError

MANIFEST = "manifest.json"
_PARTIAL, _LOCK = ".partial-", ".lock"


@contextmanager
def staged(output: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A temporary folder inside `output`; what is written to its subfolders `names` moves there at the end.

    Nothing moves after an exception (Ctrl-C included), and the temporary folder goes.  An existing subfolder
    is replaced only if `overwrite`, and only one that this tool wrote (it holds our manifest).
    Raises OutputError where something is in the way or cannot be written.
    """
    created = _make(output)
    check_free(output, names, overwrite)
    _sweep(output)
    try:
        temporary, lock = _partial(output)
    except OSError as error:
        raise as_output_error(error, output) from error
    try:
        for name in names:
            (temporary / name).mkdir()
        yield temporary
        _publish(temporary, output, names)
    except OSError as error:
        raise as_output_error(error, output) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)
        for folder in created:  # only those still empty: nothing was published
            try:
                folder.rmdir()
            except OSError:
                break


def _partial(output: Path) -> tuple[Path, int]:
    """A folder for what is being written, and the lock on it that ends with this process, however it ends.

    It gets its name when it is locked: another run must not take it for an abandoned one before.
    """
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=output))
    lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        _locked(lock)
        temporary = new.with_name(_PARTIAL + new.name.removeprefix(".new-"))
        os.rename(new, temporary)
    except BaseException:
        os.close(lock)
        shutil.rmtree(new, ignore_errors=True)
        raise
    return temporary, lock


def _sweep(output: Path) -> None:
    """Remove what runs left behind that were killed; those that still write hold their locks."""
    for folder in output.glob(f"{_PARTIAL}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # not ours, or another run is just removing it
            continue
        try:
            if _locked(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(lock: int) -> bool:
    """Take the lock on an open file if nobody holds it; False too where the disk knows no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def workspace(output: Path, fingerprint: str) -> Iterator[Path]:
    """A folder inside `output` for what long work has finished so far; the same work finds it again.

    Who needs it creates it.  It goes when the work succeeds, and when its input is refused; after an
    interruption (a full disk is one) it stays, so that the same command goes on where it stopped.
    """
    folder, had_output = output / f".work-{fingerprint}", output.exists()
    try:
        yield folder
    except (InputError, UnsupportedError, UsageError):
        shutil.rmtree(folder, ignore_errors=True)
        if not had_output:
            with suppress(OSError):  # there is something else in it
                output.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def check_free(output: Path, names: Sequence[str], overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise OutputError if a subfolder is in the way of what will be published, or holds one of `inputs`."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; -o names the folder that artifacts are written to")
    for name in names:
        target = output / name
        if not target.exists() and not target.is_symlink():
            continue
        if not overwrite:
            raise OutputError(f"{target} exists; name another folder with -o, or add --overwrite")
        if target.is_symlink() or not target.is_dir() or not _ours(target):
            raise OutputError(
                f"{target} was not written by gpt54-convert (no {MANIFEST} of ours in it), so --overwrite "
                "leaves it alone; move it away or name another folder with -o"
            )
        if any(path.resolve().is_relative_to(target.resolve()) for path in inputs):
            raise OutputError(
                f"{target} is the model being read, so --overwrite leaves it alone; name "
                "another folder with -o"
            )


def check_space(folder: Path, size_bytes: int) -> None:
    """Raise OutputError if the disk behind `folder` (or its nearest existing parent) has no room."""
    free = free_bytes(folder)
    if free < size_bytes:
        raise OutputError(
            f"the disk of {folder} has {free:,} bytes free and the artifacts need {size_bytes:,}; free some "
            "room or name a folder on another disk with -o"
        )


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk behind `folder` or its nearest existing parent."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def as_output_error(error: OSError, where: Path) -> OutputError:
    """An operating system's refusal as one sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk of {where} is full; nothing was written, free some room and run again")
    return OutputError(f"cannot write to {error.filename or where}: {error.strerror or error}")


def _make(output: Path) -> list[Path]:
    """Create `output` and its missing parents; gives those created, innermost first."""
    missing = [path for path in (output, *output.parents) if not path.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if output.exists() and not output.is_dir():
            raise OutputError(
                f"{output} is a file; -o names the folder that artifacts are written to"
            ) from error
        raise as_output_error(error, output) from error
    return missing


def _ours(folder: Path) -> bool:
    try:
        with open(folder / MANIFEST, "rb") as file:
            found = json.loads(file.read(1 << 28))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and str(found.get("schema", "")).startswith("gpt54-convert/")


def _publish(temporary: Path, output: Path, names: Sequence[str]) -> None:
    """Move finished subfolders into place; if one move fails, those already replaced are put back."""
    old = temporary / ".old"
    old.mkdir()
    done: list[str] = []
    try:
        for name in names:
            if (output / name).exists():
                os.rename(output / name, old / name)
            done.append(name)
            os.rename(temporary / name, output / name)
    except BaseException:
        for name in done:
            if (output / name).exists():
                os.rename(output / name, temporary / name)
            if (old / name).exists():
                os.rename(old / name, output / name)
        raise
