"""The map from a teacher to a student: one TOML file, a rule a line, made to be read and edited.

```toml
schema = "gpt54-convert/map/1"
teacher = "/models/teacher"        # left out: the embedded model
student = '''{ … config.json … }'''

[layers]                           # student layer i is made of the teacher's layer …
layers = "0, 5, 11"                # (0+1 is the mean of two)

[axes]                             # an axis that is not named is the teacher's own, whole
width = "0-511, 600"
"enc.attn.heads" = "0-4"           # all layers of the encoder
"ffn@2" = "0-1023"                 # layer 2 of the student alone

[read]                             # how what reads an axis makes up for what is gone from it
width = "least-squares"

[scale]                            # by role or by name of the student's tensor
"norm.*" = 1.02

[[tensor]]                         # exceptions, by name (globs) of the student's tensor
name = "lm_head.weight"
from = "shared.weight"             # also: rows, columns, scale, plus = "other.weight[0]"
```
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import wrap
from typing import Any

from gpt54_convert.distill.choice import Choice, parse
from gpt54_convert.errors import InputError
from gpt54_convert.formats._file import read_small

SCHEMA = "gpt54-convert/map/1"
LIMIT = 64 << 20
LEAST_SQUARES = "least-squares"
_TABLES = ("schema", "teacher", "student", "layers", "axes", "read", "scale", "tensor")
_WIDE = 100


@dataclass(frozen=True)
class Special:
    """What one tensor of the student (or all that match a glob) is made of, against the rules.

    source: the teacher's tensor, "" for the rule's own.  plus: (a tensor, a row of it) added to every row.
    """

    name: str
    source: str = ""
    rows: Choice | None = None
    columns: Choice | None = None
    scale: float = 1.0
    plus: tuple[str, int] | None = None


@dataclass(frozen=True)
class Map:
    """layers: by stack.  axes: by key (see `key`).  read: by key.  scale: by role or name, globs allowed."""

    student: Mapping[str, Any]
    teacher: Path | None = None
    layers: Mapping[str, Choice] = field(default_factory=dict)
    axes: Mapping[str, Choice] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    tensors: tuple[Special, ...] = ()

    def axis(self, keys: list[str]) -> tuple[str, Choice] | None:
        """The most special rule among `keys`, and its key."""
        return next(((key, self.axes[key]) for key in keys if key in self.axes), None)

    def exception(self, name: str) -> Special | None:
        """The first exception that is for this tensor of the student."""
        return next((each for each in self.tensors if fnmatchcase(name, each.name)), None)

    def factor(self, role: str, name: str) -> float:
        """What a tensor is multiplied with: the most special of its name, its role, and globs of roles.

        A glob means no biases: the scale of activations is that of gains.
        """
        for key in (name, role):
            if key in self.scale:
                return self.scale[key]
        if role.endswith(".bias"):
            return 1.0
        return next((value for key, value in self.scale.items() if fnmatchcase(role, key)), 1.0)


def keys(size: str, stack: str, module: str, layer: int | None) -> list[str]:
    """How [axes] may name an axis, most special first: `enc.attn.heads@2`, `enc.attn.heads`, `heads`."""
    if not module:
        return [size]
    side = "enc." if stack.startswith("encoder") else ""
    stem = side + (size if module == size else f"{module}.{size}")
    special = [] if layer is None else [f"{stem}@{layer}"]
    return [*special, *dict.fromkeys([stem, size])]


def dumps(plan: Map) -> str:
    """The map as TOML that `read` gives back."""
    lines = [
        "# Which weights of the teacher each weight of the student is made of.",
        "# Edit it freely; `gpt54-convert distill show` says what it means.",
        f"schema = {_text(SCHEMA)}",
    ]
    if plan.teacher is not None:
        lines.append(f"teacher = {_text(str(plan.teacher))}")
    config = json.dumps(plan.student, indent=1, ensure_ascii=False)
    lines.append(f"student = {_text(config)}" if "'''" in config else f"student = '''\n{config}\n'''")
    choices = {"layers": plan.layers, "axes": plan.axes}
    for name, table in choices.items():
        lines += _table(name, {key: _long(str(choice)) for key, choice in table.items()})
    lines += _table("read", {key: _text(how) for key, how in plan.read.items()})
    lines += _table("scale", {key: repr(float(value)) for key, value in plan.scale.items()})
    for each in plan.tensors:
        lines += ["", "[[tensor]]", *_special_lines(each)]
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, str]) -> list[str]:
    if not values:
        return []
    return ["", f"[{name}]", *(f"{_key(key)} = {value}" for key, value in values.items())]


def _special_lines(each: Special) -> list[str]:
    values = {"name": _text(each.name)}
    if each.source:
        values["from"] = _text(each.source)
    for axis, choice in (("rows", each.rows), ("columns", each.columns)):
        if choice is not None:
            values[axis] = _long(str(choice))
    if each.scale != 1.0:
        values["scale"] = repr(each.scale)
    if each.plus:
        values["plus"] = _text(f"{each.plus[0]}[{each.plus[1]}]")
    return [f"{key} = {value}" for key, value in values.items()]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else _text(key)


def _text(text: str) -> str:
    """A basic string; JSON's is one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _long(text: str) -> str:
    """A line of indices; a long one on several lines, so that two maps can be compared."""
    if len(text) <= _WIDE:
        return _text(text)
    return '"""\n' + "\n".join(wrap(text, _WIDE)) + '"""'


def read(path: Path) -> Map:
    """The map in a file.  Raises InputError where it cannot be read or makes no sense."""
    try:
        content = tomllib.loads(read_small(path, LIMIT).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from error
    if content.get("schema") != SCHEMA:
        raise InputError(f"{path}: is no map (it has no line schema = {SCHEMA!r}); `distill map` writes one")
    unknown = next((key for key in content if key not in _TABLES), None)
    if unknown:
        raise InputError(f"{path}: unknown key {unknown!r}; a map has {', '.join(_TABLES)}")
    teacher = content.get("teacher")
    if teacher is not None and not isinstance(teacher, str):
        raise InputError(f"{path}: teacher = {teacher!r} is not a path")
    return Map(
        student=_config(content.get("student"), path),
        teacher=None if teacher is None else path.parent / Path(teacher).expanduser(),
        layers=_choices(content, "layers", path),
        axes=_choices(content, "axes", path),
        read=_read_ways(content, path),
        scale={
            key: _number(value, f"{path}: [scale] {key}") for key, value in _entries(content, "scale", path)
        },
        tensors=tuple(_special(entry, path) for entry in _list(content.get("tensor", []), path)),
    )


def _config(text: Any, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: student is not the text of a config.json ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: needs student = '''…''' with the text of the student's config.json")
    return found


def _entries(content: Mapping[str, Any], name: str, path: Path) -> list[tuple[str, Any]]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}: [{name}] must be a table")
    return list(table.items())


def _list(entries: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: exceptions are written as [[tensor]] tables")
    return entries


def _choices(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Choice]:
    return {key: _choice(value, f"{path}: [{name}] {key}") for key, value in _entries(content, name, path)}


def _choice(value: Any, where: str) -> Choice:
    if not isinstance(value, str):
        raise InputError(f'{where} must be text such as "0-31, 40"')
    return parse(value, where)


def _read_ways(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    for key, how in _entries(content, "read", path):
        if how not in ("copy", LEAST_SQUARES):
            raise InputError(f"{path}: [read] {key} = {how!r} is not copy or {LEAST_SQUARES}")
    return dict(_entries(content, "read", path))


def _number(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{where} = {value!r} is not a number")
    return float(value)


def _special(entry: dict[str, Any], path: Path) -> Special:
    where = f"{path}: [[tensor]] {entry.get('name', '')}"
    known = ("name", "from", "rows", "columns", "scale", "plus")
    wrong = [key for key in entry if key not in known]
    if wrong or not isinstance(entry.get("name"), str):
        raise InputError(f"{where}: " + (f"unknown key {wrong[0]!r}" if wrong else "needs a name"))
    plus = entry.get("plus")
    found = re.fullmatch(r"(.+)\[(\d{1,9})\]", plus) if isinstance(plus, str) else None
    if plus is not None and not found:
        raise InputError(f"{where}: plus = {plus!r} must name a row, as in other.weight[0]")
    return Special(
        name=entry["name"],
        source=str(entry.get("from", "")),
        rows=_choice(entry["rows"], f"{where} rows") if "rows" in entry else None,
        columns=_choice(entry["columns"], f"{where} columns") if "columns" in entry else None,
        scale=_number(entry.get("scale", 1.0), f"{where} scale"),
        plus=(found[1], int(found[2])) if found else None,
    )
