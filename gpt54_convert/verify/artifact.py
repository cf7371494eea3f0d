"""What is to be verified: its container, its files, what it was made from, and its bits per weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt54_convert import archs, loaders
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import STORAGE, itemsize
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.workspace import MANIFEST
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.exporters import manifest as manifests
from gpt54_convert.quantize.assign import place
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.schemes import SCHEMES
from gpt54_convert.verify import recorded
from gpt54_convert.verify.verdict import FAIL, PASS, Check

_PRESERVING = {"smooth", "awq", "rotate", "fold", "gate"}  # after these a model still answers as before
_SUFFIXES = {".gguf": "gguf", ".onnx": "onnx", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class Subject:
    """An artifact found on disk.

    path: what a runtime opens: the GGUF file (its first shard), or the folder.
    folder: where its manifest and side files lie.
    """

    container: str
    path: Path
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Path | None:
        """The model it was made from, as its manifest says."""
        recorded = self.manifest.get("source", {}).get("path")
        return Path(recorded) if isinstance(recorded, str) else None

    @property
    def fitted(self) -> tuple[Mapping[str, Any], ...]:
        """The user's texts that it was calibrated on, as its manifest records them."""
        found = self.manifest.get("recipe", {}).get("fitted_to", [])
        return tuple(entry for entry in found if isinstance(entry, dict)) if isinstance(found, list) else ()

    @property
    def is_student(self) -> bool:
        """Whether it is another model than its source: pruned or distilled, not merely stored otherwise."""
        return bool(set(self.passes) - _PRESERVING)

    @property
    def passes(self) -> tuple[str, ...]:
        """What changed the weights on purpose before they were stored (`smooth`), as its manifest says."""
        recorded = self.manifest.get("recipe", {}).get("passes", [])
        return tuple(name for step in recorded if isinstance(step, dict) for name in step)

    @property
    def rounds_inputs_whole(self) -> bool:
        """Whether what enters a layer is rounded to 8 bits with no scales for parts of it (ONNX's w8a8)."""
        recorded = self.manifest.get("recipe", {}).get("quantize", {})
        found = SCHEMES.get(str(recorded.get("scheme", "")).lower())
        return self.container == "onnx" and found is not None and bool(found.activations)

    @property
    def calibrated(self) -> bool:
        """Whether codes were chosen by the outputs of layers instead of the weights' own error."""
        return "calibration" in self.manifest.get("recipe", {})


def locate(path: Path) -> Subject:
    """The artifact at `path`, a file or a folder.

    Raises InputError where nothing is there, UsageError where it is unclear which artifact is meant.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    folder = path if path.is_dir() else path.parent
    manifest = recorded.read(folder)
    if path.is_file():
        container = _SUFFIXES.get(path.suffix)
        if container is None:
            raise InputError(f"{path}: is no artifact (.gguf, .onnx or a folder of safetensors)")
        return Subject(container, path if container == "gguf" else folder, folder, manifest)
    parts = sorted(p.parent.name for p in path.glob(f"*/{MANIFEST}"))
    if not manifest and parts:
        raise UsageError(
            f"{path}: holds {len(parts)} artifacts; name one of them: "
            + ", ".join(str(path / part) for part in parts)
        )
    found = sorted(path.glob("*.gguf"))
    if found:
        shards = [file for file in found if "-00001-of-" in file.name]
        if len(found) > 1 and not shards:
            raise UsageError(f"{path}: holds {len(found)} .gguf files; name the one that is meant")
        return Subject("gguf", (shards or found)[0], path, manifest)
    if any(path.rglob("*.onnx")):
        return Subject("onnx", path, path, manifest)
    if (path / "config.json").exists():
        return Subject("safetensors", path, path, manifest)
    raise InputError(f"{path}: holds no artifact (no .gguf, no .onnx, no config.json with safetensors)")


def written(container: str, folder: Path, manifest: Mapping[str, Any]) -> Subject:
    """What has just been written into `folder`, with what its manifest will say."""
    if container == "gguf":
        path = sorted(folder.glob("*.gguf"))[0]  # the first of its shards
    else:
        bare = [] if (folder / "config.json").exists() else sorted(folder.glob("*.safetensors"))
        path = bare[0] if len(bare) == 1 else folder  # a model without a config is a lone file
    return Subject(container, path, folder, manifest)


def size_bytes(subject: Subject) -> int:
    """Bytes of the artifact's files."""
    files = subject.folder.rglob("*") if subject.path.is_dir() else [subject.path]
    return sum(file.stat().st_size for file in files if file.is_file())


def check_files(subject: Subject) -> list[Check]:
    """Every file as the manifest recorded it: size first, then its hash."""
    checks = []
    for entry in subject.manifest.get("outputs", ()):
        path = subject.folder / entry["name"]
        problem = ""
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != entry["size_bytes"]:
            problem = f"has {path.stat().st_size:,} bytes, but {entry['size_bytes']:,} were written"
        elif manifests.sha256(path) != entry["sha256"]:
            problem = "has changed since it was written"
        if problem:
            detail = f"{entry['name']} {problem}; copy or make the artifact again"
            checks.append(Check("files", entry["name"], FAIL, detail))
    if subject.manifest and not checks:
        count = len(subject.manifest.get("outputs", ()))
        checks.append(Check("files", "manifest", PASS, f"{count} files are as the manifest recorded them"))
    return checks


def load_tensors(subject: Subject) -> Checkpoint | None:
    """The artifact's own tensors; None where they cannot be read back (foreign ONNX graphs, no onnx)."""
    if subject.container == "onnx":
        try:
            from gpt54_convert.verify import onnx_weights
        except ImportError:
            return None
        return onnx_weights.read(
            subject.path, {row["name"]: row for row in subject.manifest.get("tensors", ())}
        )
    if not any(loader.matches(subject.path) for loader in loaders.loaders()):
        return None
    return loaders.load(subject.path)


def body_bits(subject: Subject, checkpoint: Checkpoint | None) -> float | None:
    """Bits per weight that at least a tenth of the weights between embedding and head do not exceed.

    That is what an artifact is called by: neither a large vocabulary in 8 bits nor the few layers that get
    more bits should demand more of the rest.
    """
    if checkpoint is not None:
        rows = [
            (place(checkpoint, name).role, tensor.size, bits_of(tensor))
            for name, tensor in checkpoint.tensors.items()
            if len(tensor.shape) == 2
        ]
    else:
        rows = [
            (row["role"], math.prod(row["shape"]), _bits(row))
            for row in subject.manifest.get("tensors", ())
            if len(row["shape"]) == 2
        ]
    body = sorted((bits, count) for role, count, bits in rows if not _outside(role))
    left = sum(count for _, count in body) / 10
    for bits, count in body:
        left -= count
        if left <= 0:
            return bits
    return None


def grids_of(subject: Subject, checkpoint: Checkpoint | None) -> dict[str, str]:
    """The grid of every tensor that holds codes, from the artifact itself or from its manifest."""
    if checkpoint is not None:
        return {name: tensor.grid for name, tensor in checkpoint.tensors.items() if tensor.grid}
    rows = subject.manifest.get("tensors", ())
    return {row["name"]: row["grid"] for row in rows if row["grid"] not in STORAGE}


def bits_of(tensor: LazyTensor) -> float:
    """Bits per weight as the artifact stores it."""
    if tensor.grid:
        try:
            return grid(tensor.grid).bpw(tensor.columns)
        except UsageError:  # a type that is no grid of ours: the file's own bytes tell
            pass
    return 8 * tensor.source_bytes / max(1, tensor.size)


def _bits(row: Mapping[str, Any]) -> float:
    stored = row.get("grid", "")
    return float(8 * itemsize(stored)) if stored in STORAGE else float(row["bits_per_weight"])


def _outside(role: str) -> bool:
    return role.startswith(("embed", "head", "norm", "enc.norm")) or role.endswith((".bias", "rel_bias"))


def is_superblock(checkpoint: Checkpoint | None) -> bool:
    """Whether most of it stands on K-quants, whose gates are tighter."""
    if checkpoint is None:
        return False
    grids = [tensor.grid or "" for tensor in checkpoint.tensors.values() if tensor.grid]
    return sum(name.endswith(("_k", "_xs")) for name in grids) * 2 > len(grids)


def kind_of(checkpoint: Checkpoint) -> str:
    """`decoder`, `encoder` or `encoder-decoder`; undescribed models are taken for decoders."""
    return archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "decoder"
