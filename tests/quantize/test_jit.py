"""The cache of machine code: never stale, and never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt54_convert.quantize.kernels import jit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of kernels of its own: jit.py, and a helper in another file than its kernel."""
    shutil.copy(jit.__file__, tmp_path / "jit.py")
    (tmp_path / "main.py").write_text(
        "from jit import kernel\nfrom other import answer\n@kernel\ndef ask():\n    return answer()\n"
    )
    (tmp_path / "other.py").write_text("from jit import helper\n@helper\ndef answer():\n    return 41\n")
    return tmp_path


def run(folder: Path, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()


def test_a_change_of_a_helper_is_seen(folder):
    """Numba by itself looks at the kernel's own file alone."""
    code = "import main; print(main.ask(), sum(main.ask.stats.cache_hits.values()))"
    assert [run(folder, code), run(folder, code)] == ["41 0", "41 1"]
    other = folder / "other.py"
    other.write_text(other.read_text().replace("41", "42"))
    assert [run(folder, code), run(folder, code)] == ["42 0", "42 1"]


def test_without_a_folder_to_write_every_process_compiles(folder):
    nowhere = "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []"
    assert run(folder, f"{nowhere}; import main; print(main.ask())") == "41"
