"""Recipes as TOML: every table is a dataclass of options, every key a field; unknown keys are refused.

```toml
source = "my-llama"

[[pass]]
name = "prune"
layers = 12

[quantize]
bits = 4

[export]
to = ["gguf"]
output = "dist"
```
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt54_convert.core.options import to_dict
from gpt54_convert.core.passes import Pass
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.verify.options import VerifyOptions

# What a [[pass]] may be called: the module and class of each.
PASSES = {
    "prune": ("gpt54_convert.prune.step", "Prune"),
    "distill-init": ("gpt54_convert.distill.options", "DistillInit"),
    "distill-train": ("gpt54_convert.distill.options", "DistillTrain"),
    "rotate": ("gpt54_convert.transforms.rotate", "Rotate"),
    "awq": ("gpt54_convert.transforms.awq", "Awq"),
    "smooth": ("gpt54_convert.transforms.smooth", "Smooth"),
    "gate": ("gpt54_convert.verify.stage", "Gate"),
}
STEPS = {"quantize": Quantize, "convert": Convert}
_KINDS = {"int": int, "float": float, "str": str, "bool": bool}
_TABLES = ("source", "pass", *STEPS, "export", "verify")


def pass_class(name: str) -> type[Any]:
    """The dataclass of a pass.  Raises UsageError for a name that is none."""
    if name not in PASSES:
        raise UsageError(f"there is no pass {name!r}; there are {', '.join(PASSES)}{_near(name, PASSES)}")
    module, kind = PASSES[name]
    found: type[Any] = getattr(import_module(module), kind)
    return found


def read(path: Path) -> Recipe:
    """The recipe in a TOML file; what it reads is sought from the file's folder, `output` from where you are.

    Raises InputError for a file that cannot be read, UsageError for keys and values that make no sense.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from error
    return from_dict(content, str(path), path.parent)


def from_dict(content: Mapping[str, Any], where: str, folder: Path) -> Recipe:
    """A recipe from its tables; `where` names them in errors, `folder` is where relative paths start."""
    _known(content, _TABLES, where)
    source = content.get("source")
    if not isinstance(source, str):
        raise UsageError(f'{where}: needs a line like source = "path/to/model"')
    chosen = [name for name in STEPS if name in content]
    if len(chosen) > 1:
        raise UsageError(f"{where}: has both [quantize] and [convert]; keep the one that is meant")
    name = chosen[0] if chosen else "convert"
    return Recipe(
        _path(source, folder),
        _options(STEPS[name], content.get(name, {}), f"{where}: [{name}]", folder),
        _options(Export, content.get("export", {}), f"{where}: [export]", Path()),
        tuple(_passes(content.get("pass", []), where, folder)),
        _options(VerifyOptions, content["verify"], f"{where}: [verify]", folder)
        if "verify" in content
        else None,
    )


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML that `read` gives back; options at their defaults are left out."""
    import tomli_w

    tables: dict[str, Any] = {"source": str(recipe.source.absolute())}
    if recipe.passes:
        tables["pass"] = [{"name": pass_name(step), **_changed(step)} for step in recipe.passes]
    tables[type(recipe.step).__name__.lower()] = _changed(recipe.step)
    tables["export"] = _changed(recipe.export)
    if recipe.verify is not None:
        tables["verify"] = _changed(recipe.verify)
    return tomli_w.dumps(tables)


def pass_name(step: Pass) -> str:
    """The key of a pass in recipes."""
    kind = type(step)
    return next(name for name, place in PASSES.items() if place == (kind.__module__, kind.__name__))


def _passes(entries: Any, where: str, folder: Path) -> list[Pass]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{where}: passes are written as [[pass]] tables, one each")
    found = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry.get("name"), str):
            raise UsageError(f"{where}: pass {number} needs a name, one of {', '.join(PASSES)}")
        options = {key: value for key, value in entry.items() if key != "name"}
        place = f"{where}: pass {number} ({entry['name']})"
        try:
            kind = pass_class(entry["name"])
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        found.append(_options(kind, options, place, folder))
    return found


def _options(kind: type[Any], table: Any, where: str, folder: Path) -> Any:
    """An instance of a dataclass of options from a table."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    keys = {key.replace("-", "_"): value for key, value in table.items()}
    _known(keys, fields, where)
    values = {key: _value(fields[key], value, f"{where} {key}", folder) for key, value in keys.items()}
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _value(field: dataclasses.Field[Any], value: Any, where: str, folder: Path) -> Any:
    """A value as the field wants it.  Raises UsageError for another type, or no valid choice."""
    wanted, choices = field.default, field.metadata.get("choices")
    if isinstance(wanted, Path) or field.metadata.get("is_path"):
        if not isinstance(value, str):
            raise UsageError(f"{where} = {value!r} is not a path")
        return _path(value, folder)
    if isinstance(wanted, tuple):
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise UsageError(f"{where} = {value!r} is not a list of texts")
        return tuple(value)
    kinds = tuple(kind for word, kind in _KINDS.items() if word in str(field.type).split(" | "))
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"{where} = {value!r} is not a {' or '.join(kind.__name__ for kind in kinds)}")
    if choices and value not in choices:
        raise UsageError(f"{where} = {value!r} is not one of {', '.join(map(str, choices))}")
    return value


def _changed(options: Any) -> dict[str, Any]:
    plain = to_dict(options)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {key: value for key, value in plain.items() if getattr(options, key) != defaults[key]}


def _known(keys: Mapping[str, Any], allowed: Any, where: str) -> None:
    for key in keys:
        if key not in allowed:
            raise UsageError(f"{where}: unknown key {key!r}{_near(key, allowed)}")


def _near(word: str, allowed: Any) -> str:
    near = get_close_matches(word, list(allowed), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _path(text: str, folder: Path) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() else folder / path
