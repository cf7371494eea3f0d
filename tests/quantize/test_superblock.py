"""The superblock grids: kernels against a naive reference, against their own objective, and against ggml."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peers import ggml

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.packing.ggml import pack
from gpt54_convert.quantize.grids import GRIDS, SUPER, grid
from gpt54_convert.quantize.kernels import super_symmetric
from gpt54_convert.quantize.kernels.jit import kernel
from gpt54_convert.quantize.kernels.lanes import load, store
from gpt54_convert.quantize.kernels.superblock import rtn, search
from gpt54_convert.quantize.qtensor import IQ4_LEVELS, QTensor

Array = NDArray[np.float32]
NAMES = [name for name, each in GRIDS.items() if each.kind == SUPER]
STEPS = {"q2_k": 15, "q4_k": 63, "q5_k": 63}
SIGNED = {"q3_k": (-4, 3, -32, 31), "q6_k": (-32, 31, -128, 127), "iq4_xs": (-127, 113, -32, 31)}
F32 = np.float32


def weights(kind: str, rows: int = 48, columns: int = 1024, seed: int = 0) -> Array:
    """Random weights [rows, columns]: `gauss`, `heavy` (Student-t), `real` (rows and columns of their own
    scale, some columns six times as large), `positive`, `offset` (all groups far from 0)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, columns))
    if kind == "heavy":
        values = generator.standard_t(4, (rows, columns))
    elif kind == "real":
        values *= 0.02 * np.exp(generator.normal(0, 0.5, (rows, 1)) + generator.normal(0, 0.3, (1, columns)))
        values[:, generator.integers(0, columns, columns // 100)] *= 6
    elif kind == "positive":
        values = np.abs(values)
    elif kind == "offset":
        values = values - 5
    return values.astype(F32)


def importances(columns: int, seed: int = 1) -> Array:
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, columns)).astype(F32)


def loss(weight: Array, values: Array, importance: Array | None = None) -> NDArray[np.float64]:
    """Σ importance · error² of each superblock, [rows, columns / 256]."""
    error = (values.astype(np.float64) - weight) ** 2
    if importance is not None:
        error = error * importance
    return error.reshape(weight.shape[0], -1, 256).sum(axis=-1)


def ratio(weight: Array, name: str, importance: Array | None) -> float:
    """Our root mean square error as a part of ggml's, both weighted by `importance`."""
    theirs = ggml.dequantize(ggml.quantize(weight, name, importance), name, weight.shape)
    ours = search(weight, grid(name), importance).dequantize()
    return float(np.sqrt(loss(weight, ours, importance).sum() / loss(weight, theirs, importance).sum()))


def half(values: Array) -> Array:
    """Float16 next to values, as float32; saturates, and does not vanish unless the value is 0."""
    with np.errstate(over="ignore"):
        rounded = np.clip(values.astype(np.float16).astype(F32), -65504, 65504)
    rounded[(rounded == 0) & (values != 0)] = 2.0**-24
    return np.copysign(rounded, values)


def inverse(values: Array) -> Array:
    return np.divide(F32(1), values, out=np.zeros_like(values), where=values != 0)


def reference(weight: Array, name: str) -> dict[str, NDArray[np.generic]]:
    """Plain rounding as its definition reads, in NumPy's float32."""
    per_super = 256 // grid(name).group
    groups = np.clip(weight, -1e9, 1e9).reshape(-1, per_super, grid(name).group)
    if name in STEPS:
        top, steps = F32(2 ** grid(name).bits - 1), F32(STEPS[name])
        low = np.minimum(groups.min(axis=-1), 0)
        a, b = (groups.max(axis=-1) - low) / top, -low
        d, dmin = half(a.max(axis=-1) / steps)[:, None], half(b.max(axis=-1) / steps)[:, None]
        s = np.minimum(np.rint(np.divide(a, d, out=np.zeros_like(a), where=d > 0)), steps)
        m = np.minimum(np.rint(np.divide(b, dmin, out=np.zeros_like(b), where=dmin > 0)), steps)
        scaled = (groups + (dmin * m)[..., None]) * inverse(d * s)[..., None]
        return {"codes": np.clip(np.rint(scaled), 0, top), "scale": s, "offset": m, "d": d, "dmin": dmin}
    low, high, least, most = (F32(value) for value in SIGNED[name])
    negative = groups.max(axis=-1) < -groups.min(axis=-1)
    a = np.where(negative, groups.min(axis=-1), groups.max(axis=-1)) / low
    size = np.abs(a).max(axis=-1)
    d = half(np.where(size <= a.max(axis=-1), size, -size) / least)[:, None]
    s = np.clip(np.rint(np.divide(a, d, out=np.zeros_like(a), where=d != 0)), least, most)
    scaled = groups * inverse(d * s)[..., None]
    if name == "iq4_xs":
        codes = np.searchsorted((IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2, scaled, side="left")
    else:
        codes = np.clip(np.rint(scaled), low, high) - low
    return {"codes": codes, "scale": s + (0 if name == "q6_k" else 32), "d": d}


def check_stored(tensor: QTensor) -> None:
    """Everything fits in its bits and is finite."""
    name = tensor.grid.name
    assert tensor.codes.max() < 2**tensor.grid.bits
    assert tensor.scale.max() <= {"q2_k": 15, "q6_k": 127}.get(name, 63)
    assert tensor.offset is None or tensor.offset.max() <= STEPS[name]
    assert tensor.super_scale is not None and np.isfinite(tensor.super_scale).all()
    assert tensor.super_offset is None or np.isfinite(tensor.super_offset).all()
    assert np.isfinite(tensor.dequantize()).all()


def degenerate() -> dict[str, Array]:
    """Rows [3, 512] that break careless scale searches."""
    base = weights("gauss", 3, 512)
    cases = {
        name: np.zeros((3, 512), F32) for name in ("zero", "constant", "negative constant", "one number")
    }
    cases["constant"][:] = 0.37
    cases["negative constant"][:] = -2.5
    cases["one number"][1, 300] = 3.0
    cases["zero groups"] = base.copy()
    cases["zero groups"][:, 32:96] = 0
    cases["constant groups"] = base.copy()
    cases["constant groups"][:, 64:128] = 1.25
    cases["giant"] = base.copy()
    cases["giant"][1, 17] = 1e6
    cases["giant negative"] = base.copy()
    cases["giant negative"][2, 400] = -1e6
    cases["subnormal"] = (base * 1e-40).astype(F32)
    cases["mixed sizes"] = base * np.exp2(np.arange(512) // 16 - 20.0).astype(F32)
    for exponent in (-30, -8, -7, -6, 5, 8, 12, 30):
        cases[f"1e{exponent}"] = base * F32(10.0**exponent)
    cases["largest float"] = np.copysign(np.finfo(F32).max, base)
    cases["positive"], cases["offset"] = weights("positive", 3, 512), weights("offset", 3, 512)
    return cases


CASES = degenerate()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["gauss", "heavy", "real", "positive", "offset", *CASES])
def test_rtn_equals_the_reference(name: str, kind: str) -> None:
    weight = CASES[kind] if kind in CASES else weights(kind, 6, 768)
    tensor = rtn(weight, grid(name))
    check_stored(tensor)
    expected = reference(weight, name)
    assert tensor.super_scale is not None
    got = {"codes": tensor.codes, "scale": tensor.scale, "d": tensor.super_scale}
    if tensor.offset is not None and tensor.super_offset is not None:
        got |= {"offset": tensor.offset, "dmin": tensor.super_offset}
    for part, values in got.items():
        np.testing.assert_array_equal(values.reshape(-1), expected[part].reshape(-1), err_msg=part)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_search_survives_degenerate_weights(name: str, kind: str, weighted: bool) -> None:
    weight, importance = CASES[kind], importances(512) if weighted else None
    tensor = search(weight, grid(name), importance)
    check_stored(tensor)
    values = tensor.dequantize()
    plain = loss(weight, rtn(weight, grid(name)).dequantize(), importance)
    assert (loss(weight, values, importance) <= plain * (1 + 1e-5)).all()
    if kind == "zero" or (kind == "one number" and name != "iq4_xs"):  # which has no level 0
        assert not values[weight == 0].any()
    if kind in ("constant", "negative constant"):
        np.testing.assert_allclose(values, weight, rtol=0.01)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[Array, Array | None]:
    """Two rows of weights, and their importances: of any scale, with zeros among them, or none."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    columns = 256 * draw(st.integers(1, 3))
    spread = draw(st.sampled_from([0.0, 0.5, 3.0]))
    weight = generator.standard_t(draw(st.sampled_from([1.5, 3, 30])), (2, columns // 16, 16))
    weight = weight * np.exp(generator.normal(0, spread, (2, columns // 16, 1))) + draw(st.floats(-3, 3))
    if draw(st.booleans()):
        weight = np.round(weight)
    weight = (weight * 10.0 ** draw(st.integers(-4, 2))).reshape(2, columns).astype(F32)
    if draw(st.booleans()):
        return weight, None
    importance = np.exp(generator.normal(0, draw(st.sampled_from([0.1, 1, 3])), columns))
    importance[generator.random(columns) < draw(st.sampled_from([0, 0.1, 0.9]))] = 0
    return weight, (importance * 10.0 ** draw(st.integers(-6, 6))).astype(F32)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(problem=_problems())
def test_search_is_never_worse_than_rtn(name: str, problem: tuple[Array, Array | None]) -> None:
    weight, importance = problem
    tensor = search(weight, grid(name), importance)
    check_stored(tensor)
    if importance is not None:  # the objective itself: no column counts for nothing
        floor = 1e-6 * importance.astype(np.float64).mean()
        importance = np.maximum(importance, floor) if floor else None
    plain = loss(weight, rtn(weight, grid(name)).dequantize(), importance)
    assert (loss(weight, tensor.dequantize(), importance) <= plain * (1 + 1e-5)).all()


@pytest.mark.skipif(not ggml.available(), reason=ggml.MISSING)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["gauss", "heavy", "real", "positive", "offset"])
def test_search_beats_ggml(name: str, kind: str) -> None:
    weight, usual = weights(kind), kind in ("gauss", "heavy", "real")
    assert ratio(weight, name, None) < (0.985 if usual else 1)
    assert ratio(weight, name, importances(1024)) < (0.97 if usual else 1.01)
    assert ratio(weight, name, np.ones(1024, F32)) < (1 if usual else 1.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["real", "positive", "giant", "mixed sizes", "1e-7", "1e8"])
def test_readers_see_the_same_numbers(name: str, kind: str) -> None:
    weight = CASES[kind] if kind in CASES else weights(kind, 4, 768)
    for tensor in (rtn(weight, grid(name)), search(weight, grid(name), importances(weight.shape[1]))):
        read = gguf.quants.dequantize(pack(tensor), gguf.GGMLQuantizationType[name.upper()])
        np.testing.assert_array_equal(read, tensor.dequantize())


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    """Rows may come in any chunks, also where a tile reaches over the end of a row, and from any thread."""
    weight, importance = weights("real", 5, 768), importances(768)
    whole = search(weight, grid(name), importance).dequantize()
    with ThreadPoolExecutor(2) as pool:
        each = list(pool.map(lambda row: search(row[None], grid(name), importance).dequantize(), weight))
    np.testing.assert_array_equal(np.concatenate(each), whole)


@pytest.mark.parametrize("name", NAMES)
def test_importance_counts_by_ratios_alone(name: str) -> None:
    weight, importance = weights("gauss", 4, 512), importances(512)
    for scaled in (importance * F32(2**-90), importance * F32(2**40)):
        np.testing.assert_array_equal(
            search(weight, grid(name), scaled).dequantize(),
            search(weight, grid(name), importance).dequantize(),
        )
    np.testing.assert_array_equal(
        search(weight, grid(name), np.zeros(512, F32)).dequantize(), search(weight, grid(name)).dequantize()
    )


def test_importance_decides_where_the_error_goes() -> None:
    weight, importance = weights("gauss", 16, 512), np.ones(512, F32)
    importance[::4] = 100
    plain = search(weight, grid("q4_k")).dequantize()
    guided = search(weight, grid("q4_k"), importance).dequantize()
    chosen = slice(None, None, 4)
    assert np.square(guided - weight)[:, chosen].sum() < 0.7 * np.square(plain - weight)[:, chosen].sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", [rtn, search])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(name: str, solver: type[rtn], value: float) -> None:
    weight = weights("gauss", 3, 256)
    weight[2, 200] = value
    with pytest.raises(InputError, match="row 2 "):
        solver(weight, grid(name))


def test_bad_arguments_are_refused() -> None:
    weight = weights("gauss", 2, 256)
    for importance in (-np.ones(256, F32), np.full(256, np.nan, F32)):
        with pytest.raises(InputError, match="importance"):
            search(weight, grid("q4_k"), importance)
    with pytest.raises(InternalError, match="importance"):
        search(weight, grid("q4_k"), np.ones(255, F32))
    with pytest.raises(InternalError, match="shape"):
        search(weight[:, :128], grid("q4_k"))
    with pytest.raises(InternalError, match="shape"):
        search(weight, grid("q4_0"))


@kernel
def _levels(codes: Array, out: Array) -> None:
    store(out, 0, super_symmetric._level_of(load(codes, 0)))


def test_the_polynomial_gives_iq4_levels_exactly() -> None:
    out = np.empty(16, F32)
    _levels(np.arange(16, dtype=F32), out)
    np.testing.assert_array_equal(out, IQ4_LEVELS)


def test_no_rows_give_no_codes() -> None:
    assert search(np.empty((0, 256), F32), grid("q4_k")).codes.shape == (0, 256)


def digest() -> str:
    """A hash of codes and scales that searches on two grids find."""
    found = hashlib.sha256()
    for name in ("q4_k", "iq4_xs"):
        for importance in (None, importances(512)):
            tensor = search(weights("real", 3, 512), grid(name), importance)
            for part in (tensor.codes, tensor.scale, tensor.super_scale):
                found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 CPU")
def test_codes_do_not_depend_on_the_cpu(tmp_path: Path) -> None:
    """Without AVX and without fused multiply-add in hardware: the same codes, only slower."""
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"from {__name__} import digest; print(digest())"
    run = [sys.executable, "-c", command]
    folder = Path(__file__).parent
    assert subprocess.check_output(run, env=environment, cwd=folder, text=True).strip() == digest()
