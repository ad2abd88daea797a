"""A fitted law, asked: the loss of a run, the best buy for a budget, the least compute for a loss, with 90% intervals.

Shape suffixes: B bootstrap replicates, m runs, n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.bootstrap import interval, prediction_limits
from sweep.fit.frontier import MOST_FLOPS, FlopsModel
from sweep.fit.identifiability import refuse_best_buy
from sweep.fit.laws import Law, law_named
from sweep.fit.solve import pinned


@dataclass(frozen=True)
class Fitted:
    """A law with its parameters, by published name, and the same parameters of B bootstrap replicates; without
    replicates there are no intervals. `deviation_n`: how rows deviate in log loss from the law fitted without their
    family."""

    law: Law
    params: Mapping[str, Any]
    flops: FlopsModel
    replicates: Mapping[str, np.ndarray] = field(default_factory=dict)
    widening: float = 1.0
    deviation_n: np.ndarray = field(default_factory=lambda: np.empty(0))
    without_effect: list[str] = field(default_factory=list)  # variables that the losses do not fall with

    @classmethod
    def of(cls, fit: Mapping[str, Any]) -> "Fitted":
        """From what `fit.json` holds."""
        flops = FlopsModel(fit["flops_model"]["k"], fit["flops_model"]["gamma"])
        certificate = fit.get("certificate", {})
        without_effect = certificate.get("without_effect", [])  # an older fit was not asked
        found = cls(law_named(fit["form"]), fit["params"], flops, without_effect=without_effect)
        if not fit.get("replicates") or pinned(certificate):
            return found
        return replace(
            found,
            replicates={name: np.asarray(values, dtype=float) for name, values in fit["replicates"].items()},
            widening=fit["bootstrap"]["widening"],
            deviation_n=np.asarray(fit["deviations"], dtype=float),
        )

    @property
    def floor(self) -> float:
        """The loss in nats that no compute crosses."""
        return float(self.params.get("E", 0.0))

    @property
    def drawn(self) -> "Fitted":
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

    def loss_interval(self, N: float, D: float, **more: Any) -> list[float] | None:
        """90% prediction interval of the loss that one new run will show."""
        if not self.replicates:
            return None
        N_m, D_m = np.array([float(N)]), np.array([float(D)])
        centre_m, drawn_Bm = self.loss(N_m, D_m, **more), self.drawn.loss(N_m, D_m, **more)
        low_m, high_m = prediction_limits(centre_m, drawn_Bm, self.deviation_n, self.widening, seed=0)
        return [float(low_m[0]), float(high_m[0])]

    def optimum(self, C: Any) -> tuple[Any, Any, Any]:
        """(N, D, loss in nats) of the best buy for C FLOPs, an array or a number. UserError where there is none."""
        refuse_best_buy(self.without_effect)
        return frontier.optimum(self.law, self.params, self.flops, C)

    def optimal(self, C: float) -> dict[str, Any]:
        """The best buy for C FLOPs: {"C", "N", "D", "loss_nats"}, and "N_interval", "D_interval", "loss_nats_interval"
        where there are replicates. UserError where the law's best buy is no run at all."""
        best = dict(zip(("N", "D", "loss_nats"), map(float, self.optimum(C)), strict=True))
        if not all(1 <= best[name] < np.inf for name in ("N", "D")):
            raise UserError(f"{C:.3g} FLOPs: the best buy, N = {best['N']:.3g} and D = {best['D']:.3g}, is no run")
        found: dict[str, Any] = {"C": float(C)} | best
        if not self.replicates:
            return found
        try:
            drawn = dict(zip(best, self.drawn.optimum(C), strict=True))
        except UserError:  # some replicate has no optimum at C: no interval would be honest
            return found
        ends = {name: interval(best[name], drawn[name], self.widening, positive=True) for name in best}
        return found | {f"{name}_interval": both for name, both in ends.items()}

    def compute_for_loss(self, loss_nats: float) -> float:
        """The least FLOPs for a loss. UserError at or below the fitted floor."""
        refuse_best_buy(self.without_effect)
        C = float(frontier.cheapest(self.law, self.params, self.flops, loss_nats))
        if not 0 < C < np.inf:
            why = "no compute reaches it" if C else "the law is below it without any compute"
            raise UserError(f"a loss of {loss_nats:g} nats: {why}; the fitted floor is {self.floor:.4g}")
        return C

    def compute_for_loss_interval(self, loss_nats: float) -> list[float] | None:
        """90% interval of `compute_for_loss`; infinite above where the floor may be higher."""
        if not self.replicates:
            return None
        least_B = frontier.cheapest(self.law, self.replicates, self.flops, loss_nats)
        least_B = np.clip(least_B, 1.0, MOST_FLOPS)
        ends = interval(self.compute_for_loss(loss_nats), least_B, self.widening, positive=True)
        return [ends[0], ends[1] if ends[1] < MOST_FLOPS / 10 else np.inf] if ends else None
