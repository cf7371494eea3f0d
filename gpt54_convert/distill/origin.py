"""From a map's rules to where each single tensor of the student comes from; nothing is read for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.distill.choice import Choice, whole
from gpt54_convert.distill.mapping import LEAST_SQUARES, Map, keys
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.loaders._model import layer_by_layer
from gpt54_convert.prune.spaces import FFN, WIDTH, axes

Factors = list[tuple[str, list[str]]]  # of one axis: the size, and how [axes] may name it


@dataclass(frozen=True)
class Origin:
    """What one tensor of the student is made of.

    names: tensors of the teacher, averaged.  choices: by axis, None for the whole.
    squares: the axis key (`width`, `ffn@2`) whose lost channels its columns make up for, "" for none.
    scale, shift: (value + shift) × scale − shift.  plus: a tensor of the teacher and the row of it to add.
    """

    names: tuple[str, ...]
    choices: tuple[Choice | None, ...]
    scale: float = 1.0
    shift: float = 0.0
    squares: str = ""
    plus: tuple[str, int] | None = None


@dataclass(frozen=True)
class Both:
    """Teacher and student side by side: their tables and sizes."""

    teacher: Checkpoint
    plan: Map
    old: Architecture = field(init=False)
    new: Architecture = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "old", described(self.teacher.config, str(self.teacher.source.path)))
        object.__setattr__(self, "new", described(self.plan.student, "the student's config"))

    @property
    def old_sizes(self) -> dict[str, int]:
        return self.old.sizes(self.teacher.config)

    @property
    def new_sizes(self) -> dict[str, int]:
        return self.new.sizes(self.plan.student)


def described(config: Mapping[str, object], where: str) -> Architecture:
    """The table of a config.  Raises UnsupportedError where nobody described its architecture."""
    found = archs.for_config(config)
    if found is None:
        raise UnsupportedError(
            f"{where}: nobody described the architecture {config.get('model_type')!r}, so which of its "
            "weights belong together is unknown; docs/architectures.md shows how to add one"
        )
    found.checks(config)
    return found


def reads(match: Match) -> bool:
    """Whether the columns of a matrix take in what flows along their axis; those of a table hold it."""
    return not match.weight.role.startswith("embed") and not match.weight.role.endswith("rel_bias")


def origins(teacher: Checkpoint, plan: Map) -> dict[str, Origin]:
    """Every tensor of the student, in the order of the model.

    Raises InputError for a rule that is missing or names what the teacher has not.
    """
    both = Both(teacher, plan)
    new_sizes = both.new_sizes
    found: dict[str, Origin] = {}
    for name, match in both.new.expected(new_sizes).items():
        origin = _described(both, name, match)
        if origin is not None:
            found[name] = origin
    for name in teacher.tensors:
        if both.old is both.new and both.old.match(name) is None:
            found[name] = _undescribed(both, name)
    for special in plan.tensors:
        if special.source and not any(character in special.name for character in "*?["):
            found.setdefault(special.name, Origin((special.source,), (None, None)))
    found = {name: _with_special(both, name, origin) for name, origin in found.items()}
    for name, origin in found.items():
        _check_names(both, name, origin)
    return {name: found[name] for name in sorted(found, key=layer_by_layer(both.new))}


def _described(both: Both, name: str, match: Match) -> Origin | None:
    """The rules' own origin of a tensor; None for one that the student does without, as the teacher does."""
    plan, sizes = both.plan, both.old_sizes
    sources = _counterparts(both, match)
    if not sources:
        return None
    choices = tuple(
        _axis(both, axis, _factors(both.old, sources[0][1], axis), _factors(both.new, match, axis), name)
        for axis in range(len(match.shape(sizes)))
    )
    scale = plan.factor(match.role, name)
    if match.weight.role == "head" and sources[0][1].weight.role == "embed":
        power = both.old.width_scales(both.teacher.config).get("norm.final", 0.0)
        scale *= sizes[WIDTH] ** power  # a tied T5 scales what comes before its head
    return Origin(
        tuple(source for source, _ in sources),
        choices,
        scale,
        float(match.weight.plus_one and not match.is_bias),
        _squares(both, match),
    )


def _counterparts(both: Both, match: Match) -> list[tuple[str, Match]]:
    """The teacher's tensors of the same role in the layers that the map names; none where it has none."""
    weight = match.weight
    layers: list[int | None] = [match.layer]
    if match.layer is not None and not weight.only_first:
        choice = both.plan.layers.get(weight.stack) or whole(both.old_sizes[weight.stack])
        if len(choice) != both.new_sizes[weight.stack]:
            raise InputError(
                f"map: [layers] {weight.stack} has {len(choice)} entries, but the student has "
                f"{both.new_sizes[weight.stack]} such layers"
            )
        layers = [int(layer) for layer in choice.members[match.layer] if layer >= 0]
    tied = both.plan.student.get("tie_word_embeddings")
    if weight.role == "head" and (both.new.tied if tied is None else tied):
        return []
    wanted = both.old.expected(both.old_sizes)
    found = []
    for role in (weight.role, *(["embed"] if weight.role == "head" else [])):
        places = {(other.weight.role, other.layer, other.is_bias): name for name, other in wanted.items()}
        names = [places.get((role, layer, match.is_bias)) for layer in layers]
        found = [(name, wanted[name]) for name in names if name and name in both.teacher.tensors]
        if found and len(found) == len(layers):
            return found
    if weight.optional or match.is_bias:
        return []
    raise InputError(
        f"map: the student's {match.hf} has no counterpart in layer{'s' if len(layers) > 1 else ''} "
        f"{', '.join(map(str, layers))} of the teacher; mend [layers] or add a [[tensor]]"
    )


def _factors(architecture: Architecture, match: Match, axis: int) -> Factors:
    found = []
    for size, space in axes(architecture, match)[axis]:
        if space is None:
            found.append((size, [size]))
        else:
            found.append((size, keys(size, space.stack, space.module, space.layer)))
    return found


def _axis(both: Both, axis: int, old: Factors, new: Factors, name: str) -> Choice | None:
    """What an axis of a tensor is made of: the product of its factors' choices; None for all of it."""
    if [size for size, _ in old] != [size for size, _ in new]:
        raise InputError(f"map: {name} counts {new} where the teacher counts {old}; add a [[tensor]]")
    result, changed = whole(1), False
    for size, names in new:
        old_length = int(size) if size.isdigit() else both.old_sizes[size]
        new_length = int(size) if size.isdigit() else both.new_sizes[size]
        rule = both.plan.axis(names)
        if rule is None and old_length != new_length:
            raise InputError(
                f"map: [axes] says nothing of {names[-1]!r}, of which the teacher has {old_length} and the "
                f"student {new_length} ({name})"
            )
        choice = rule[1] if rule else whole(old_length)
        if rule and len(choice) != new_length:
            raise InputError(
                f"map: [axes] {rule[0]} has {len(choice)} entries, but the student has {new_length} ({name})"
            )
        if rule and choice.highest >= old_length:
            raise InputError(
                f"map: [axes] {rule[0]} names index {choice.highest}, but the teacher's last is "
                f"{old_length - 1}"
            )
        result = result.times(choice, old_length)
        changed |= not choice.is_all_of(old_length)
    return result if changed else None


def _squares(both: Both, match: Match) -> str:
    """The key of the axis that the columns read and make up for, where the map asks for it."""
    if match.is_bias or len(match.weight.shape) < 2 or not reads(match):
        return ""
    factors = _factors(both.new, match, 1)
    if len(factors) != 1 or factors[0][0] not in (WIDTH, FFN):
        return ""
    names = factors[0][1]
    how = next((both.plan.read[key] for key in names if key in both.plan.read), "copy")
    return names[0] if how == LEAST_SQUARES and both.plan.axis(names) else ""


def _undescribed(both: Both, name: str) -> Origin:
    """A tensor without a role: whole, but for axes as long as a width that shrinks."""
    rule, length = both.plan.axis([WIDTH]), both.old_sizes[WIDTH]
    shape = both.teacher.tensors[name].shape
    return Origin((name,), tuple(rule[1] if rule and size == length else None for size in shape))


def _with_special(both: Both, name: str, origin: Origin) -> Origin:
    special = both.plan.exception(name)
    if special is None:
        return origin
    choices = list(origin.choices)
    for axis, choice in enumerate((special.rows, special.columns)):
        if choice is not None and axis < len(choices):
            choices[axis] = choice
    return replace(
        origin,
        names=(special.source,) if special.source else origin.names,
        choices=tuple(choices),
        scale=origin.scale * special.scale,
        plus=special.plus or origin.plus,
    )


def _check_names(both: Both, name: str, origin: Origin) -> None:
    for source in (*origin.names, *([origin.plus[0]] if origin.plus else [])):
        if source not in both.teacher.tensors:
            raise InputError(f"map: {name} is made of {source}, which the teacher has not")
    shape = both.teacher.tensors[origin.names[0]].shape
    for size, choice in zip(shape, origin.choices, strict=False):
        if choice is not None and choice.highest >= size:
            raise InputError(
                f"map: {name} takes index {choice.highest} of {origin.names[0]}, which ends at {size - 1}"
            )


def describe(origin: Origin) -> tuple[str, str, str]:
    """Rows, columns and the rest, in words."""
    rows, columns = ("all" if choice is None else str(choice) for choice in (*origin.choices, None)[:2])
    more = [f"× {origin.scale:.4g}"] if origin.scale != 1.0 else []
    if origin.squares:
        more.append(f"least squares over {origin.squares}")
    if origin.plus:
        more.append(f"+ {origin.plus[0]}[{origin.plus[1]}]")
    return rows, columns, "; ".join(more)
