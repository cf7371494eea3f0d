"""Environments of other programs that open our artifacts: made once with pip or npm, kept in a cache.

A conformance test runs a script in one of them and reads what it prints.  An environment that cannot be made
(no network) skips the test, loudly; a script that fails in it fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from peers.packages import cache_folder

# What runs beside transformers 4: optimum's ONNX classes do not know transformers 5.  torch, ONNX Runtime and
# all else come from the environment that the tests run in.
OPTIMUM = (
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "huggingface-hub==0.36.2",
    "tokenizers==0.22.2",
)
GENAI = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "numpy", "protobuf", "flatbuffers", "packaging")
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"
_SECONDS = 400


class EnvironmentUnavailableError(RuntimeError):
    """pip or npm could not deliver."""


def python_with(name: str, packages: tuple[str, ...], borrow: bool) -> Path:
    """The interpreter of an environment that holds exactly `packages`; skips where it cannot be made.

    borrow: what it lacks is taken from the environment that the tests run in.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _kept(f"{name}-py{version}", packages, lambda folder: _make_venv(folder, packages, borrow)) / (
        "bin/python"
    )


def node_modules(package: str = TRANSFORMERS_JS) -> Path:
    """A folder whose scripts can import the npm package; skips where node or the package cannot be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        _skip("node and npm are not installed")
    return _kept("node", (package,), lambda folder: _npm(folder, package))


def ask(command: list[str | Path], script: str, feed: Any, folder: Path | None = None) -> Any:
    """Run `script` with `command`, `feed` as JSON on stdin; the last line that it prints, parsed.

    A script that fails fails the test, with what it said.
    """
    suffix = ".mjs" if Path(command[0]).name == "node" else ".py"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / f"script{suffix}"
        path.write_text(script, encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [*map(str, command), str(path)],
            input=json.dumps(feed),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**environment, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    assert done.returncode == 0, f"{command[0]} said:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def _kept(name: str, packages: tuple[str, ...], make: Any) -> Path:
    """A folder of the cache; made anew where the packages wanted are others than those in it."""
    folder = cache_folder() / f"environment-{name}"
    mark, wanted = folder / ".packages", "\n".join(packages)
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        make(folder)
    except (EnvironmentUnavailableError, subprocess.TimeoutExpired, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        _skip(f"{', '.join(packages)}: {error}")
    mark.write_text(wanted, encoding="utf-8")
    return folder


def _make_venv(folder: Path, packages: tuple[str, ...], borrow: bool) -> None:
    _run([sys.executable, "-m", "venv", folder])
    python = folder / "bin/python"
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *packages])
    if borrow:  # read last, so that the environment's own packages win
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "zz-borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")


def _npm(folder: Path, package: str) -> None:
    # Its install scripts fetch GPU libraries from elsewhere; the CPU's are in the package.
    _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder, package])


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise EnvironmentUnavailableError(f"cannot be installed: {' '.join(said)}")


def _skip(reason: str) -> None:
    warnings.warn(f"NOT TESTED: {reason}", stacklevel=3)
    pytest.skip(reason)
