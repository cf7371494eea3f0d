"""Distances between answers, and their gradients, beside SciPy and torch's own differentiation."""

import pytest
import scipy.special
import scipy.stats
import torch

from gpt54_convert.calibrate import distance
from gpt54_convert.errors import MeasureError


def answers(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(*shape, generator=generator) for _ in range(2))


@pytest.mark.parametrize("shape", [(7, 20), (3, 4, 20)])
@pytest.mark.parametrize("part", [1, 50, 1 << 20])
def test_divergence(shape, part, monkeypatch):
    monkeypatch.setattr(distance, "_PART", part)
    original, changed = answers(*shape)
    odds = [scipy.special.softmax(each.double().reshape(-1, 20).numpy(), axis=1) for each in answers(*shape)]
    changed.requires_grad_()
    with torch.no_grad():
        total, tokens = distance.divergence(original, changed)
        again, _ = distance.divergence(original, changed, to_gradient=True)
    assert total == again == pytest.approx(scipy.stats.entropy(*odds, axis=1).sum(), rel=1e-5)
    assert tokens == odds[0].shape[0]
    wanted = torch.from_numpy(odds[0]).float().reshape(shape)
    torch.nn.functional.kl_div(changed.log_softmax(-1), wanted, reduction="sum").backward()
    torch.testing.assert_close(original, changed.grad, rtol=1e-4, atol=1e-5)


def test_squares():
    (original, changed), (kept, _) = answers(3, 4, 5), answers(3, 4, 5)
    changed.requires_grad_()
    with torch.no_grad():
        total, scale = distance.squares(original, changed, to_gradient=True)
    error = ((changed - kept) ** 2).sum()
    error.backward()
    error = error.detach()
    assert total == pytest.approx(float(error), rel=1e-5) and scale == pytest.approx(
        float((kept**2).sum()), rel=1e-5
    )
    torch.testing.assert_close(original, changed.grad)


def test_answers_that_are_no_numbers():
    distance.demand_finite(torch.zeros(3))
    with pytest.raises(MeasureError, match="float model's own answers"):
        distance.demand_finite(torch.tensor([0.0, float("nan")]))
