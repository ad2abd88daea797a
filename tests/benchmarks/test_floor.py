"""The whole way once, trained for real: does the floor that the fit finds lie where the language's entropy rate is?"""

import pytest

from sweep.data.markov import MarkovSource
from sweep.fit.fit import fit_rows
from sweep.fit.rows import prepare
from sweep.runs.collect import collect
from tests.helpers import tiny

SMALLER = [  # than conf/sweep/markov.yaml; benchmarks/floor.py trains ten of that
    "model.params=770,1.7k,3k,5k,7k",
    "budget.tokens=60k,120k,240k,480k",
    "data.vocab_size=128",
    "data.tokens=600000",
    "eval.sequences=1600",
    "schedule.warmup_tokens=8k",
]


@pytest.mark.slow
def test_the_interval_of_the_floor_holds_the_entropy_rate(workspace):
    plan, sweep = tiny.make_sweep(["sweep=markov", *SMALLER, "run.device=cpu"])
    assert tiny.train(plan) == 0
    rows = prepare(collect(sweep).table)
    found = fit_rows(rows, bootstrap=400)
    rate = MarkovSource(vocab_size=128).entropy_rate_nats()
    low, high = found.interval("E")
    assert low <= rate <= high
    assert high - low < 0.1 < rows.loss.max() - rate
    assert 0.001 < rows.loss.min() - rate < 0.1
