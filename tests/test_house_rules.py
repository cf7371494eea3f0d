"""The rules of the house: imports point one way, stay light, and a leaf folder's file is its registration."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpt54_convert
from gpt54_convert.core import discover

ROOT = Path(gpt54_convert.__file__).parent
# Every module belongs to a level and may import from its own level and those before it.
LEVELS = [
    {"errors"},
    {"core"},
    {"data", "formats", "archs", "tokenizers"},
    {"quantize"},
    {"packing"},
    {"loaders"},
    {"forward"},
    {"calibrate"},
    {"transforms", "prune", "distill", "fresh"},
    {"exporters"},
    {"verify"},
    {"recipe", "method", "budget", "plan", "pipeline", "dry_run", "summary", "inspection"},
    {"sessions"},
    {"recipe_file"},
    {"cli"},
]
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "optimum",
    "compressed_tensors",
    "accelerate",
    "llama_cpp",
}
# The files that may import a runtime, and which; each is loaded only when its runtime is wanted.
RUNTIMES = {
    "exporters._onnx_bind": {"onnx_ir"},
    "exporters._onnx_calls": {"torch", "transformers"},
    "exporters._onnx_exact": {"onnx"},
    "exporters._onnx_fuse": {"onnx_ir"},
    "exporters._onnx_check": {"onnx", "torch"},
    "exporters._onnx_graph": {"onnx_ir"},
    "exporters._onnx_in_place": {"onnx_ir"},
    "exporters._onnx_int8": {"onnx_ir"},
    "exporters._onnx_join": {"onnx_ir"},
    "exporters._onnx_mask": {"onnx_ir", "onnxruntime"},
    "exporters._onnx_merge": {"onnx_ir"},
    "exporters._onnx_norms": {"onnx_ir", "onnxscript"},
    "exporters._onnx_tidy": {"onnx_ir", "onnxscript"},
    "exporters._onnx_trace": {"torch", "onnx_ir"},
    "forward.onnx_in_place": {"onnxruntime"},
    "forward.onnx_model": {"onnxruntime"},
    "forward.tables": {"torch", "accelerate"},
    "forward.torch_model": {"torch", "transformers", "accelerate"},
    "prune.observe": {"torch", "transformers"},
    "prune.moments": {"torch"},
    "transforms._inputs": {"torch"},
    "transforms._maxima": {"torch"},
    "calibrate.collect": {"torch"},
    "calibrate.layers": {"torch", "accelerate"},
    "calibrate.stream": {"torch"},
    "calibrate.walk": {"torch"},
    "calibrate.ranges": {"torch"},  # for types alone
    "calibrate.watch": {"torch"},
    "calibrate.gradients": {"torch", "transformers"},
    "calibrate.distance": {"torch"},
    "calibrate.loss": {"torch"},
    "calibrate.factored": {"torch"},
    "calibrate.tune": {"torch"},
    "verify.runners.transformers_packed": {"torch", "transformers", "compressed_tensors"},
    "verify.runners.llama_cpp": {"llama_cpp"},
    "sessions.gguf": {"llama_cpp"},
    "sessions.onnx": {"onnxruntime"},
    "sessions.safetensors": {"torch"},
    "verify.onnx_weights": {"onnx"},
    "verify.stages": {"torch"},  # one dtype, named within a function
    "distill.models": {"torch"},
    "distill.losses": {"torch"},
    "distill.pair": {"torch"},
    "distill.optimise": {"torch"},
    "distill.loop": {"torch", "accelerate"},
    "distill.training": {"torch", "accelerate"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def level(module: str) -> int:
    """Position of `gpt54_convert.X…` in LEVELS; the package's own __init__ and __main__ are free."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] == "__main__":
        return -1
    for index, names in enumerate(LEVELS):
        if parts[1] in names:
            return index
    raise AssertionError(f"{module} stands on no level: add it to LEVELS")


def dotted(path: Path) -> str:
    parts = ("gpt54_convert", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module named in an import statement of the file, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "gpt54_convert":
                found |= {f"gpt54_convert.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_one_way(path):
    own = level(dotted(path))
    if own < 0:
        return
    for name in imports(path):
        if name.startswith("gpt54_convert.") and name != "gpt54_convert.__version__":
            assert level(name) <= own, f"{dotted(path)} imports {name}, which stands above it"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_imports_a_runtime(path):
    """Data-free work needs no torch at all: only files whose job it is may import it."""
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    assert heavy <= RUNTIMES.get(dotted(path).removeprefix("gpt54_convert."), set())


def test_help_is_light():
    code = (
        "import sys, json; sys.argv = ['x', '--help']\n"
        "from gpt54_convert.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stderr)}
    assert "quantize" in done.stdout
    assert not loaded & (HEAVY | {"numpy", "numba", "rich", "gguf"})


@pytest.mark.parametrize(
    "folder",
    [
        "archs",
        "loaders",
        "exporters",
        "quantize.solvers",
        "prune.criteria",
        "prune.importance",
        "prune.layers",
        "sessions",
        "transforms",
        "verify.metrics",
        "verify.reports",
        "verify.runners",
        "cli",
    ],
)
def test_leaf_folders_register_by_file(folder):
    package = f"gpt54_convert.{folder}"
    found = {path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py")}
    assert set(discover.names(package)) == {name for name in found if not name.startswith("_")}


def test_files_stay_small():
    """Around 200 lines; a file far beyond that wants to be two."""
    long = {dotted(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 320}
    assert not long
