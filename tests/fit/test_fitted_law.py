import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU
from sweep.common.errors import UserError
from sweep.fit.bootstrap import Bootstrap
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import FlopsModel
from sweep.fit.solve import Certificate

CERTIFICATE = Certificate(0.0, 1.0, [], 6, 6, 0, True, "certified")
UNWIDENED = Bootstrap("", 200, 20, 1.0, 0.9, 0)


def fitted(**more):
    return FittedLaw.of("additive", BESIROGLU, CERTIFICATE, FlopsModel(6.0, 1.0), **more)


def test_the_least_compute_for_a_loss():
    loss = fitted().optimal(1e21).loss_nats
    assert fitted().compute_for_loss(loss) == pytest.approx(1e21, rel=1e-6)
    with pytest.raises(UserError, match="no compute reaches it"):
        fitted().compute_for_loss(BESIROGLU["E"])
    with pytest.raises(UserError, match="without any compute"):
        fitted().compute_for_loss(1e9)


def test_its_interval_is_open_where_the_floor_may_be_higher():
    rng = np.random.default_rng(0)
    replicates = {name: np.full(200, value) for name, value in BESIROGLU.items()}
    replicates["E"] = BESIROGLU["E"] + rng.uniform(-0.1, 0.1, 200)
    fit = fitted(replicates=replicates, bootstrap=UNWIDENED, deviations=[0.0])
    low, high = fit.compute_for_loss_interval(2.3)
    assert low < fit.compute_for_loss(2.3) < high < np.inf
    assert fit.compute_for_loss_interval(1.85)[1] == np.inf
    assert fitted().compute_for_loss_interval(2.3) is None


def test_a_prediction_interval_holds_the_laws_and_a_runs_part():
    replicates = {name: np.full(200, value) for name, value in BESIROGLU.items()}
    fit = fitted(replicates=replicates, bootstrap=UNWIDENED, deviations=np.linspace(-0.01, 0.01, 201))
    low, high = fit.loss_interval(1e9, 1e10)
    assert np.log(high / low) == pytest.approx(0.018, rel=0.1)
    assert fitted().loss_interval(1e9, 1e10) is None


def test_the_law_of_every_replicate_at_once():
    replicates = {name: np.array([value, 1.01 * value]) for name, value in BESIROGLU.items()}
    fit = fitted(replicates=replicates, bootstrap=UNWIDENED, deviations=[0.0])
    N_m, D_m = np.array([1e8, 1e9, 1e10]), np.array([1e10, 1e10, 1e11])
    assert fit.drawn.loss(N_m, D_m).shape == (2, 3)
    np.testing.assert_allclose(fit.drawn.loss(N_m, D_m)[0], fit.loss(N_m, D_m))
