"""Default gates of agreement, where the divergence says that first tokens are as good as ties."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt54_convert.verify import gates, metrics
from gpt54_convert.verify.judge import Bench, Judge
from gpt54_convert.verify.tally import Measured
from gpt54_convert.verify.verdict import FAIL, PASS, UNKNOWN


def judged(kl, agreement, spread=0.0, bits=16.0):
    """Outcomes of both default gates; of 16 bits: a KL of 1e-4 at most, an agreement of 0.99 at least."""
    ends = np.linspace(-spread, spread, 1000)
    figures = {
        "kl_mean_nats": Measured("kl_mean_nats", kl, np.full(1000, kl)),
        "top1_agreement": Measured("top1_agreement", agreement, agreement + ends),
    }
    lineup = SimpleNamespace(has_grids=False)
    judge = Judge(Bench(None, [], lineup, None, None), metrics.LOGITS, figures, {})
    return [judge(gate).outcome for gate in gates.defaults("logits", bits, False)]


@pytest.mark.parametrize(
    ("kl", "agreement", "spread", "outcome"),
    [
        (9e-6, 0.98, 0.001, PASS),  # ties
        (9e-6, 0.98, 0.02, PASS),
        (2e-5, 0.98, 0.001, FAIL),
        (2e-5, 0.991, 0.02, PASS),  # met, too few tokens to be sure
        (2e-5, 0.989, 0.02, UNKNOWN),
        (9e-6, 0.995, 0.001, PASS),
    ],
)
def test_the_agreement(kl, agreement, spread, outcome):
    assert judged(kl, agreement, spread) == [PASS, outcome]


def test_of_few_bits_a_small_error_excuses_nothing():
    """In a model with flat answers a fault may well leave a KL far below the 0.08 that 4 bits may cost."""
    assert judged(0.001, 0.6, 0.001, bits=4.5) == [PASS, FAIL]


def test_an_error_beyond_its_gate_excuses_nothing():
    assert judged(2e-4, 0.98, 0.001) == [FAIL, FAIL]


def test_a_users_own_gate_is_as_it_is_written():
    figure = Measured("top1_agreement", 0.98, np.full(1000, 0.98))
    small = Measured("kl_mean_nats", 1e-9, np.full(1000, 1e-9))
    bench = Bench(None, [], SimpleNamespace(has_grids=False), None, None)
    judge = Judge(bench, metrics.LOGITS, {"top1_agreement": figure, "kl_mean_nats": small}, {})
    known = ("kl_mean_nats", "top1_agreement")
    assert judge(gates.parse("kl_mean<=1e-4", known)).outcome == PASS
    assert judge(gates.parse("top1>=0.99", known)).outcome == FAIL
