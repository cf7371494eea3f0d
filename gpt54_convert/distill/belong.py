"""Whether two models can be trained together; needs no torch, so that a plan can say it."""

from __future__ import annotations

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.distill.options import DistillTrain
from gpt54_convert.distill.vocabulary import same_tokens, tokens
from gpt54_convert.errors import UnsupportedError, UsageError


def check(options: DistillTrain, teacher: Checkpoint, student: Checkpoint) -> None:
    """Raise UsageError or UnsupportedError where the two cannot be trained together."""
    kinds = []
    for each in (teacher, student):
        if each.architecture is None:
            raise UnsupportedError(
                f"{each.source.path}: nobody described the architecture {each.config.get('model_type')!r}; "
                "docs/architectures.md shows how to add one"
            )
        kinds.append(archs.by_name(each.architecture).kind)
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"the teacher is of kind {kinds[0]} and the student of kind {kinds[1]}; they must agree"
        )
    same_tokens(tokens(teacher.tokenizer), tokens(student.tokenizer))
    if kinds[0] == "encoder" and not options.hidden:
        raise UsageError(
            "an encoder has no answers to compare, only hidden states; give --hidden more than 0"
        )
