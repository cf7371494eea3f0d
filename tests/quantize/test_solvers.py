"""Every solver: what it is called, which kernels it uses, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt54_convert.core import discover
from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.encode import SOLVERS, solver
from gpt54_convert.quantize.grids import FLOAT, GRIDS, grid
from gpt54_convert.quantize.kernels import flat, superblock
from gpt54_convert.quantize.statistics import Statistics

NAMES = ("rtn", "search")
TARGETS = ("q4_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "int4-channel", "int8-g32-asym", "q4_k", "q6_k")


def weights(rows: int = 4, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def test_both_are_found_and_described():
    assert set(NAMES) <= set(discover.names(SOLVERS))
    for name in discover.names(SOLVERS):
        module = discover.load(SOLVERS, name)
        assert isinstance(module.DESCRIPTION, str) and "\n" not in module.DESCRIPTION
        assert callable(module.solve)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_grid_has_its_kernels(name, target):
    weight, importance = weights(), np.linspace(0, 3, 512, dtype=np.float32)
    kernels = superblock if target.endswith("_k") else flat
    expected = getattr(kernels, name)(weight, grid(target), importance)
    found = solver(name)(weight, grid(target), Statistics(importance, 1))
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale, expected.scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_a_weight_that_is_not_finite_is_named(name, target, value):
    weight = weights()
    weight[2, 300] = value
    weight[3, 7] = np.nan
    with pytest.raises(InputError, match=r"row 2, column 300 is -?(nan|inf)"):
        solver(name)(weight, grid(target), None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_largest_finite_weights_are_no_error(name, target):
    weight = np.full((1, 512), np.finfo(np.float32).max)
    weight[0, ::2] *= -1
    assert solver(name)(weight, grid(target), None).codes.shape == (1, 512)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name):
    solve = solver(name)
    with pytest.raises(InternalError, match="float32 matrix"):
        solve(weights().astype(np.float64), grid("q4_0"), None)
    with pytest.raises(InternalError, match="float32 matrix"):
        solve(weights()[0], grid("q4_0"), None)
    with pytest.raises(InternalError, match="contiguous"):
        solve(weights()[:, ::2], grid("q4_0"), None)
    with pytest.raises(InternalError, match="divide"):
        solve(weights(columns=48), grid("q4_0"), None)
    for target in (each for each in GRIDS.values() if each.kind == FLOAT):
        with pytest.raises(InternalError, match="casting"):
            solve(weights(), target, None)


def test_importances_are_checked():
    importance = np.ones(512, np.float32)
    importance[5] = -1
    for target in ("q4_0", "q4_1", "q4_k"):
        with pytest.raises(InputError, match="mean square"):
            solver("search")(weights(), grid(target), Statistics(importance, 1))


def digest() -> str:
    found = hashlib.sha256()
    importance = np.exp(np.random.default_rng(1).normal(0, 1, 512)).astype(np.float32)
    for name, target in (("rtn", "q4_0"), ("search", "q4_0"), ("search", "int8-channel"), ("search", "q5_1")):
        q = solver(name)(weights(8), grid(target), Statistics(importance, 1))
        found.update(q.codes.tobytes() + np.ascontiguousarray(q.scale).tobytes())
    return found.hexdigest()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 CPU")
def test_codes_do_not_depend_on_the_cpu(tmp_path):
    """Without AVX and without fused multiply-add in hardware: the same codes, only slower."""
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", f"from {__name__} import digest; print(digest())"]
    found = subprocess.check_output(run, env=environment, cwd=Path(__file__).parent, text=True)
    assert found.strip() == digest()
