"""A gate within a recipe: go on only while the model as it now is still answers like its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt54_convert.core.options import option
from gpt54_convert.core.passes import Context
from gpt54_convert.errors import GateError, InternalError, MeasureError, UsageError

if TYPE_CHECKING:
    from gpt54_convert.core.checkpoint import Checkpoint
    from gpt54_convert.verify.tally import Measured


@dataclass(frozen=True)
class Gate:
    """Measure the model as it now is against the one that the job began with; stop beyond a limit."""

    demand: tuple[str, ...] = option(
        (), "What to demand, e.g. 'perplexity_ratio<=1.5', 'kl_mean<=0.5', 'top1>=0.7'.", metavar="GATE"
    )
    text: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None, "Text to measure on. Default: the held-out text of this package.", metavar="FILE", is_path=True
    )
    tokens: int = option(4096, "Tokens to measure on.", metavar="N")

    def __post_init__(self) -> None:
        from gpt54_convert.verify import gates

        if not self.demand:
            raise UsageError("gate: nothing is demanded; give a --demand such as 'perplexity_ratio<=1.5'")
        for text in self.demand:
            if gates.parse(text, gates.figure_names("logits") + gates.figure_names("hidden")).anchor:
                raise UsageError(f"gate {text!r}: within a recipe a gate takes a number, not rtn or baseline")

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The same checkpoint.

        Raises GateError where a demand is not met, MeasureError where that cannot be told.
        """
        from gpt54_convert.verify import gates, metrics
        from gpt54_convert.verify.artifact import kind_of
        from gpt54_convert.verify.verdict import FAIL, PASS

        if context.source is None:
            raise InternalError("a gate has nothing to compare with")
        kind = metrics.HIDDEN if kind_of(context.source) == "encoder" else metrics.LOGITS
        wanted = [gates.parse(text, gates.figure_names(kind)) for text in self.demand]
        figures = self._figures(checkpoint, context.source, context, kind)
        checks = [gates.judge(gate, figures, {}) for gate in wanted]
        for check in checks:
            if check.outcome == FAIL:
                raise GateError(f"gate failed: {check.name} is {check.detail}")
            if check.outcome != PASS:
                raise MeasureError(f"gate: {check.name} is {check.detail}")
            context.report.note(f"gate passed: {check.name} is {check.detail}")
        return checkpoint

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, with nothing measured."""
        return checkpoint

    def _figures(
        self, student: Checkpoint, teacher: Checkpoint, context: Context, kind: str
    ) -> dict[str, Measured]:
        from gpt54_convert.forward.documents import cut
        from gpt54_convert.verify import documents, runners
        from gpt54_convert.verify.options import VerifyOptions
        from gpt54_convert.verify.tally import Tally

        options = VerifyOptions(text=self.text, tokens=self.tokens, threads=context.threads)
        torch_reference = runners.load(runners.REFERENCE)
        texts = cut(documents.read_text(options), teacher, options.tokens, options.length)
        tally = Tally(kind)
        one = torch_reference.TorchReference(teacher, context.threads)
        other = torch_reference.TorchReference(student, context.threads)
        total = sum(len(document.tokens) for document in texts)
        with context.report.progress("measuring for the gate", total) as advance:
            for batch in documents.batches(texts, teacher, options):
                tally.add(batch, one.logits(batch), other.logits(batch))
                advance(sum(batch.lengths))
        if not tally.finite:
            raise GateError("gate failed: the model answers with NaN or infinity")
        return tally.figures()
