"""What all loaders of model folders share: safe paths, JSON, side files and shard indexes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError
from gpt54_convert.formats._file import read_small

CONFIG_LIMIT = 16 << 20
INDEX_LIMIT = 128 << 20
TOKENIZER_LIMIT = 200 << 20  # of all tokenizer files together
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


@dataclass(frozen=True)
class SideFiles:
    """What lies beside the weights.  files: their paths, for the manifest."""

    config: dict[str, Any]
    generation_config: dict[str, Any] | None
    tokenizer: Mapping[str, bytes]
    files: tuple[Path, ...]


def contained(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, which must be a plain name and must really lie there.

    Symbolic links may point within the folder, or from a snapshot of the Hugging Face cache to its blobs;
    any other could make us copy a private file into an artifact that is then published.
    Raises InputError otherwise.  The file need not exist.
    """
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise InputError(
            f"{folder}: refers to the file {name[:200]!r}; only plain names in the folder are allowed"
        )
    path, base = folder / name, folder.resolve()
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: is a symbolic link that leads nowhere") from error
    blobs = base.parent.parent / "blobs" if base.parent.name == "snapshots" else None
    if not real.is_relative_to(base) and not (blobs and real.is_relative_to(blobs)):
        raise InputError(f"{path}: is a symbolic link out of the folder; replace it by the file itself")
    return path


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The JSON object in `path`.  Raises InputError where it is too large, damaged or no object."""
    raw = read_small(path, limit)
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: is not valid JSON ({reason}); get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def has_file(folder: Path, name: str) -> bool:
    """True where `folder` is a folder and holds `name`, be it a broken link."""
    path = folder / name
    return folder.is_dir() and (path.exists() or path.is_symlink())


def side_files(folder: Path) -> SideFiles:
    """config.json (required), generation_config.json and the tokenizer of a model folder."""
    if not has_file(folder, "config.json"):
        hint = "; it holds an adapter, merge that into its model first" if _is_adapter(folder) else ""
        raise InputError(f"{folder}: has no config.json, so the model's shape is unknown{hint}")
    files = [contained(folder, "config.json")]
    config = read_json(files[0])
    generation = None
    if has_file(folder, "generation_config.json"):
        files.append(contained(folder, "generation_config.json"))
        generation = read_json(files[-1])
    tokenizer, left = {}, TOKENIZER_LIMIT
    for name in TOKENIZER_FILES:
        if has_file(folder, name):
            files.append(contained(folder, name))
            tokenizer[name] = read_small(files[-1], left)
            left -= len(tokenizer[name])
    return SideFiles(config, generation, tokenizer, tuple(files))


def _is_adapter(folder: Path) -> bool:
    return has_file(folder, "adapter_config.json")


def weight_files(folder: Path, index: str, single: str) -> tuple[list[Path], dict[str, str] | None]:
    """The files that hold the weights, and the index's map tensor -> file where there is an index.

    index, single: the usual names, `model.safetensors.index.json` and `model.safetensors`.
    Raises InputError where a shard is missing or left over, or where it is unclear which file is meant.
    """
    suffix = Path(single).suffix
    if has_file(folder, single):
        return [contained(folder, single)], None
    if has_file(folder, index):
        weight_map = _weight_map(contained(folder, index))
        names = list(dict.fromkeys(weight_map.values()))
        files = [contained(folder, name) for name in names]
        _check_shards(folder, index, names)
        return files, weight_map
    found = sorted(path.name for path in folder.iterdir() if path.suffix == suffix)
    if len(found) == 1:
        return [contained(folder, found[0])], None
    if not found:
        raise InputError(f"{folder}: has neither {single} nor {index}")
    raise InputError(
        f"{folder}: has {len(found)} {suffix} files but no {index}; get the index, or name one of the files"
    )


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: has no weight_map that tells which file holds which tensor")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{path}: weight_map must map tensor names to file names")
    return weight_map


def _check_shards(folder: Path, index: str, names: list[str]) -> None:
    present = {path.name for path in folder.iterdir()}
    missing = sorted(set(names) - present)
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of the {len(names)} files that {index} names are missing "
            f"(first: {missing[0]}); download the rest"
        )
    kinds = {match.groups() for match in map(_SHARD.fullmatch, names) if match}
    for name in sorted(present - set(names)):
        match = _SHARD.fullmatch(name)
        if match and match.groups() in kinds:
            raise InputError(
                f"{folder}: {name} is not named by {index}; remove the left-over file or mend the index"
            )


def check_index(folder: Path, weight_map: Mapping[str, str], held: Iterable[tuple[str, str]]) -> None:
    """Compare an index with the tensors that the files really hold, given as (tensor, file).

    Raises InputError naming the first tensor over which they disagree.
    """
    actual = dict(held)
    for name, file in weight_map.items():
        if actual.get(name) != file:
            where = f"it is in {actual[name]}" if name in actual else "no file holds it"
            raise InputError(
                f"{folder}: the index places tensor {name} in {file}, but {where}; get the folder again"
            )
    for name, file in actual.items():
        if name not in weight_map:
            raise InputError(
                f"{folder}: {file} holds tensor {name}, which the index lacks; get the folder again"
            )


def merge(parts: Iterable[tuple[Path, Mapping[str, LazyTensor]]]) -> dict[str, LazyTensor]:
    """The tensors of all files as one; InputError where two files hold the same name."""
    merged: dict[str, LazyTensor] = {}
    origin: dict[str, str] = {}
    for path, tensors in parts:
        for name, tensor in tensors.items():
            if name in merged:
                raise InputError(
                    f"{path}: tensor {name} is also in {origin[name]}; which one is meant is unclear"
                )
            merged[name], origin[name] = tensor, path.name
    return merged
