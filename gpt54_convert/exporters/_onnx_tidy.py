"""A traced graph tidied by onnxscript's and onnx_ir's own passes: constants folded, what is unused removed.

As `onnxscript.optimizer.optimize_ir`, but for one of its rules (two slices of one tensor become a split),
whose search compares all nodes with all others: of 22 layers it takes as long as all else, and finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter

_SLOW = "SlicesSplit"
_ROUNDS = 2


def tidy(model: ir.Model) -> None:
    """Optimise in place."""
    rules = _rules()
    if not rules:
        optimizer.optimize_ir(model)
        return
    unused: list[Any] = [
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
    ]
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified
        rewritten = rewriter.RewritePass(rules)(model).modified
        if not any([folded, rewritten, *(each(model).modified for each in unused)]):
            break
    last: list[Any] = [
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ]
    for each in last:
        each(model)


def _rules() -> Sequence[Any]:
    """onnxscript's rules but the slow one; none where it no longer keeps them under this name."""
    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    return [rule for rule in rules if getattr(rule, "name", "") != _SLOW]
