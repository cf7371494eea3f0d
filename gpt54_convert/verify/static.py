"""Config: whether artifact and source describe the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.config import lookup
from gpt54_convert.loaders import _folder
from gpt54_convert.verify.artifact import Subject
from gpt54_convert.verify.verdict import FAIL, PASS, Check

_ROPE_BASE = "rope_parameters.rope_theta|rope_theta"
_TIED = "tie_word_embeddings"
_PADDED = ("vocab",)
# Entries that say how weights are stored, for whom, or who wrote the file, not what the model is.
_FREE = {
    "quantization_config",
    "transformers.js_config",
    "dtype",
    "torch_dtype",
    "architectures",
    "transformers_version",
    "_name_or_path",
    "use_cache",
}


def check_kind(subject: Subject, source: Checkpoint, artifact: Checkpoint | None) -> Check | None:
    """A failed check where the two differ in architecture or sizes: nothing else could be compared."""
    config: Mapping[str, Any] = {}
    if artifact is not None:
        config = artifact.config
    elif _folder.has_file(subject.folder, "config.json"):
        config = _folder.read_json(subject.folder / "config.json")
    known = archs.for_config(config)
    theirs = (artifact and artifact.architecture) or (known.name if known else config.get("model_type"))
    ours = source.architecture or source.config.get("model_type")
    if theirs is None or ours is None:
        return None
    if ours == theirs:
        return None if subject.is_student else _check_sizes(source, config)
    detail = (
        f"the artifact is a {theirs} model, but {source.source.path} is a {ours} model; name the one that it "
        "was made from with --against"
    )
    return Check("config", "architecture", FAIL, detail)


def _check_sizes(source: Checkpoint, theirs: Mapping[str, Any]) -> Check | None:
    """A failed check where a model of the same architecture is a larger or smaller one."""
    if source.architecture is None:
        return None
    sizes = archs.by_name(source.architecture).sizes
    ours, its = sizes(source.config), sizes(theirs)
    # Rows of an embedding may be padded.
    differing = [name for name in ours if name in its and name not in _PADDED and ours[name] != its[name]]
    if not differing:
        return None
    told = ", ".join(f"{name} {its[name]} (the model: {ours[name]})" for name in differing)
    detail = (
        f"the artifact is of other sizes than {source.source.path}: {told}; name the model that it was made "
        "from with --against"
    )
    return Check("config", "sizes", FAIL, detail)


def check_config(subject: Subject, source: Checkpoint, artifact: Checkpoint | None) -> list[Check]:
    """One failed check for each entry in which the two differ, or one passed check."""
    if artifact is not None:
        theirs = artifact.config
    elif _folder.has_file(subject.folder, "config.json"):
        theirs = _folder.read_json(subject.folder / "config.json")
    else:
        return []
    differing = _differing(source, theirs, subject.container == "gguf")
    if subject.passes and differing.get(_TIED) == (True, False):
        del differing[_TIED]  # a pass that changes embedding and head each in its own way unties them
    if not differing:
        return [Check("config", "config", PASS, "artifact and model agree")]
    return [
        Check(
            "config",
            key,
            FAIL,
            f"{key} is {_short(found)} in the artifact, but {_short(wanted)} in the model",
        )
        for key, (wanted, found) in differing.items()
    ]


def _differing(source: Checkpoint, theirs: Any, described: bool) -> dict[str, tuple[Any, Any]]:
    """key -> (source's, artifact's).  A GGUF file's config was rebuilt, so only described entries count."""
    pairs: dict[str, tuple[Any, Any]] = {}
    architecture = archs.by_name(source.architecture) if source.architecture else None
    if architecture is not None:
        for key in architecture.keys:
            wanted = _or(lookup(source.config, key.hf), key.default)
            found = _or(lookup(theirs, key.hf), key.default)
            if wanted is not None:
                pairs[key.hf.split("|", maxsplit=1)[0]] = (wanted, found)
        ours, its = architecture.sizes(source.config), architecture.sizes(theirs)
        pairs |= {name: (ours[name], its.get(name)) for name in ours if name != "vocab"}
    bases = (lookup(source.config, _ROPE_BASE), lookup(theirs, _ROPE_BASE))
    if None not in bases:  # some architectures keep it apart from their keys
        pairs["rope_theta"] = bases
    if not described:
        for name in (set(source.config) | set(theirs)) - _FREE:
            pairs[name] = (source.config.get(name), theirs.get(name))
    return {key: pair for key, pair in sorted(pairs.items()) if not _same(*pair)}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _same(first: Any, second: Any) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return math.isclose(first, second, rel_tol=1e-6)  # GGUF keeps float32
    return bool(first == second)


def _short(value: Any) -> str:
    return repr(value)[:80]
