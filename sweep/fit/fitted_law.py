"""A fitted law, asked: the loss of a run, the compute-optimal N and D for a budget, the least compute for a loss, each
with its 90% interval.

Shape suffixes: B bootstrap replicates, m runs, n rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.bootstrap import Bootstrap, Interval, interval, prediction_limits
from sweep.fit.frontier import MOST_FLOPS, FlopsModel, Optimum
from sweep.fit.identifiability import refuse_without_effect
from sweep.fit.law import Law, Params
from sweep.fit.laws import law_named
from sweep.fit.solve import Certificate


@dataclass(frozen=True)
class FittedLaw:
    """A law with its parameters, by published name, and the same parameters of B bootstrap replicates; without
    replicates there are no intervals. `deviation_n`: how rows deviate in log loss from the law fitted without their
    family."""

    law: Law
    params: Params
    flops: FlopsModel
    replicates: Mapping[str, np.ndarray] = field(default_factory=dict)
    widening: float = 1.0
    deviation_n: np.ndarray = field(default_factory=lambda: np.empty(0))
    without_effect: list[str] = field(default_factory=list)  # variables that the losses do not fall with

    @classmethod
    def of(
        cls,
        form: str,
        params: Mapping[str, float],
        certificate: Certificate,
        flops: FlopsModel,
        replicates: Mapping[str, Sequence[float]] | None = None,
        deviations: Sequence[float] | None = None,
        bootstrap: Bootstrap | None = None,
    ) -> "FittedLaw":
        """From the parts of a fit. A parameter pinned at a bound of the search leaves no intervals."""
        found = cls(law_named(form), dict(params), flops, without_effect=certificate.without_effect)
        if not replicates or bootstrap is None or deviations is None or certificate.pinned:
            return found
        return replace(
            found,
            replicates={name: np.asarray(values, dtype=float) for name, values in replicates.items()},
            widening=bootstrap.widening,
            deviation_n=np.asarray(deviations, dtype=float),
        )

    @property
    def floor(self) -> float:
        """The loss in nats that no compute goes below."""
        return float(self.params.get("E", 0.0))

    @property
    def drawn(self) -> "FittedLaw":
        """The law of every replicate at once: parameters (B, 1), so that answers for m runs are (B, m)."""
        return replace(self, params={name: values_B[:, None] for name, values_B in self.replicates.items()})

    def loss(self, N: Any, D: Any, **more: Any) -> Any:
        """Loss in nats of a model of N parameters trained on D tokens. `more`: other variables of the form (S optimizer
        steps, U unique tokens; U is D where not given)."""
        x = {"N": N, "D": D, "U": D, "C": self.flops.flops(N, D), "M": np.divide(D, N)} | more
        missing = [name for name in self.law.variables if name not in x]
        if missing:
            raise UserError(f"--form {self.law.name}: {missing[0]} is needed to predict a loss")
        return self.law.loss(self.params, x)

    def loss_interval(self, N: float, D: float, **more: Any) -> Interval | None:
        """90% prediction interval of the loss in nats that one new run will show."""
        if not self.replicates:
            return None
        N_m, D_m = np.array([float(N)]), np.array([float(D)])
        centre_m, drawn_Bm = self.loss(N_m, D_m, **more), self.drawn.loss(N_m, D_m, **more)
        low_m, high_m = prediction_limits(centre_m, drawn_Bm, self.deviation_n, self.widening, seed=0)
        return Interval(float(low_m[0]), float(high_m[0]))

    def optimum(self, C: Any) -> tuple[Any, Any, Any]:
        """The compute-optimal (N, D, loss in nats) for C FLOPs, an array or a number. UserError where there is none."""
        refuse_without_effect(self.without_effect)
        return frontier.optimum(self.law, self.params, self.flops, C)

    def optimal(self, C: float) -> Optimum:
        """The compute-optimal model for C FLOPs, with intervals where there are replicates. UserError where its N or D
        is below 1 or not finite."""
        N, D, loss_nats = map(float, self.optimum(C))
        if not (1 <= N < np.inf and 1 <= D < np.inf):
            raise UserError(f"{C:.3g} FLOPs: the compute-optimal N = {N:.3g} and D = {D:.3g} cannot be trained")
        found = Optimum(float(C), N, D, loss_nats)
        if not self.replicates:
            return found
        try:
            N_B, D_B, loss_B = self.drawn.optimum(C)
        except UserError:  # some replicate has no optimum at C: no interval would be honest
            return found
        return replace(
            found,
            N_interval=interval(N, N_B, self.widening, positive=True),
            D_interval=interval(D, D_B, self.widening, positive=True),
            loss_nats_interval=interval(loss_nats, loss_B, self.widening, positive=True),
        )

    def compute_for_loss(self, loss_nats: float) -> float:
        """The least FLOPs for a loss. UserError at or below the fitted floor."""
        refuse_without_effect(self.without_effect)
        C = float(frontier.least_compute(self.law, self.params, self.flops, loss_nats))
        if not 0 < C < np.inf:
            why = "no compute reaches it" if C else "the law is below it without any compute"
            raise UserError(f"a loss of {loss_nats:g} nats: {why}; the fitted floor is {self.floor:.4g}")
        return C

    def compute_for_loss_interval(self, loss_nats: float) -> Interval | None:
        """90% interval of `compute_for_loss`; its high end is infinite where the floor may be above the loss."""
        if not self.replicates:
            return None
        least_B = frontier.least_compute(self.law, self.replicates, self.flops, loss_nats)
        least_B = np.clip(least_B, 1.0, MOST_FLOPS)
        ends = interval(self.compute_for_loss(loss_nats), least_B, self.widening, positive=True)
        return Interval(ends.low, ends.high if ends.high < MOST_FLOPS / 10 else np.inf) if ends else None
