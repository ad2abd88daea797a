"""What must be read before the numbers of a fit are trusted, in sentences."""

import numpy as np

from sweep.fit.bootstrap import Interval, SeedNoise
from sweep.fit.frontier import FlopsModel
from sweep.fit.identifiability import described
from sweep.fit.rows import Rows
from sweep.fit.solve import WEAK_CONDITION, Certificate, Solution

WIDE_EXPONENT = 0.5
MOST_TIMES_SEED_NOISE = 3
MOST_FLOPS_ERROR = 0.1


def warnings_about(
    rows: Rows,
    solution: Solution,
    flops: FlopsModel,
    refused: str | None,
    intervals: dict[str, Interval | None] | None,
    noise: SeedNoise | None,
) -> list[str]:
    """`refused`: why there are no intervals, where a bootstrap was wanted and refused."""
    found = [*_search(solution.certificate), *([refused] if refused else []), *_wide_exponents(intervals or {})]
    if noise is not None:
        residual = np.log(rows.loss) - solution.bound.evaluate(solution.theta_P[None]).y_Bn[0]
        ratio = float(np.sqrt(np.mean(residual**2))) / max(noise.sd_log_loss, 1e-12)
        if ratio > MOST_TIMES_SEED_NOISE:
            found.append(
                f"the residuals of the form are {ratio:.1f} times the seed noise: it does not describe these rows"
            )
    if flops.worst_relative_error > MOST_FLOPS_ERROR:
        found.append(
            f"C = {flops.k:.3g} N^{flops.gamma:.3f} D misses the FLOPs of a row by "
            f"{100 * flops.worst_relative_error:.0f}%: N_opt at a given C is that uncertain"
        )
    epochs_n = rows.D / rows.extra.get("U", rows.D)
    if "U" not in solution.law.variables and np.any(epochs_n > 1.001):
        found.append(
            f"{int(np.sum(epochs_n > 1.001))} rows repeat data: {solution.law.name} counts a repeated token as new"
        )
    return found


def _search(certificate: Certificate) -> list[str]:
    """What the search itself says: no effect of N or D, starts that disagree, parameters that are not determined."""
    found = []
    if certificate.without_effect:
        what = described(certificate.without_effect)
        found.append(f"{what}: neither a compute-optimal size nor the loss of a larger run follows from it")
    if certificate.verdict == "uncertain optimum":
        found.append(f"uncertain optimum: {certificate.starts_agreeing} of {certificate.starts} starts agree")
    if certificate.bounds_hit:
        hit = ", ".join(certificate.bounds_hit)
        found.append(f"weakly identified: {hit} at a bound of the search; the data do not determine it")
    elif certificate.condition_number > WEAK_CONDITION:
        found.append(
            f"weakly identified (condition number {certificate.condition_number:.0f}): the parameters "
            "trade off against each other; widen the range of N and of D"
        )
    return found


def _wide_exponents(intervals: dict[str, Interval | None]) -> list[str]:
    found = []
    for name in ("alpha", "beta", "a"):
        ends = intervals.get(name)
        if ends and ends.high - ends.low > WIDE_EXPONENT:
            what = "the exponent of N_opt, a," if name == "a" else name
            found.append(f"weakly identified: {what} is anywhere in [{ends.low:.2f}, {ends.high:.2f}]")
    return found
