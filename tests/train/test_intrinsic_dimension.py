from dataclasses import replace

import numpy as np
import pytest
import torch

from sweep.common.errors import UserError
from sweep.data.tokens import Tokens
from sweep.train.activations import dimension_of, final_layer
from sweep.train.curve import State
from sweep.train.intrinsic_dimension import intrinsic_dimension
from sweep.train.setup import Setup
from sweep.verbs.plan import plan_here
from tests.helpers import tiny


@pytest.mark.parametrize("d", [2, 5])
def test_dimension_of_a_curved_sheet_in_many_coordinates(d):
    rng = np.random.default_rng(0)
    flat = rng.uniform(size=(3000, d))
    bent = np.concatenate([flat, np.sin(2 * flat), flat**2], axis=1) @ rng.normal(size=(3 * d, 40))
    found = intrinsic_dimension(bent)
    assert found.d == pytest.approx(d, rel=0.12)
    assert found.interval[0] < found.d < found.interval[1]


def test_density_does_not_matter():
    points = np.random.default_rng(0).normal(size=(4000, 3)) ** 3
    assert intrinsic_dimension(points).d == pytest.approx(3, rel=0.15)


def test_the_interval_covers_as_often_as_it_says():
    """On a flat sheet of dimension 2, where the estimator's assumption (an even density near a point) nearly holds."""
    rng = np.random.default_rng(0)
    found = [intrinsic_dimension(rng.uniform(size=(400, 2))).interval for _ in range(300)]
    assert 0.82 < np.mean([low <= 2 <= high for low, high in found]) < 0.97


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, tiny.steps(20)])


def setup_of(plan, **options):
    """A model with random weights: at its start every block is the identity, and a position says its token only."""
    (trial,) = plan.trials
    tokens = Tokens.open(plan.config.paths.tokens, trial.config.data.fingerprint)
    setup = Setup.of(trial, tokens, replace(plan.config.run, **options), "cpu", "sdpa", execution_class="class")
    State.fresh(setup)
    generator = torch.Generator().manual_seed(1)
    for weight in setup.model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 4
    return setup


def test_activations_are_what_the_head_reads(plan):
    """At positions all over the validation set, the same however it is cut into micro-batches."""
    setup = setup_of(plan)
    found = final_layer(setup, 50)
    assert found.shape == (50, 16)
    inputs = torch.from_numpy(setup.validation_NT[:, :-1].astype(np.int64))
    with torch.no_grad():
        expected = setup.model.features(inputs).flatten(0, 1)
    assert found == pytest.approx(expected[np.arange(50) * inputs.numel() // 50].numpy(), abs=1e-5)
    assert final_layer(setup_of(plan, micro_batch_sequences=2), 50) == pytest.approx(found, abs=1e-5)
    assert final_layer(setup, 3) == pytest.approx(expected[np.arange(3) * inputs.numel() // 3].numpy(), abs=1e-5)
    assert len(final_layer(setup, 10**6)) == inputs.numel()


def test_the_dimension_is_measured_where_there_are_points_enough(plan, monkeypatch):
    setup = setup_of(plan)
    found = dimension_of(setup)
    assert found is not None
    assert 1 < found.d < 16
    monkeypatch.setattr(setup, "validation_NT", setup.validation_NT[:2])
    assert dimension_of(setup) is None


@pytest.mark.parametrize(
    "points",
    [np.zeros((10, 3)), np.zeros(500), np.zeros((500, 3)), np.full((500, 3), np.nan)],
    ids=["few", "flat", "repeated", "nan"],
)
def test_bad_activations(points):
    with pytest.raises(UserError) as error:
        intrinsic_dimension(points)
    assert "\n" not in str(error.value)
