"""The published forms that are sums of power laws: additive, one variable, Kaplan's steps, per ratio."""

from sweep.fit.power_sum import PowerSum, Term

ADDITIVE = PowerSum(
    "additive",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2",
    (Term("E"), Term("A", (("N", "alpha", -1.0),)), Term("B", (("D", "beta", -1.0),))),
)


def power_law(variable: str, floor: bool) -> PowerSum:
    """L(x) = E + (x0/x)^alpha in one of N, D, C; without the floor E is fixed at 0."""
    scale = Term(f"{variable}0", ((variable, "alpha", -1.0),), as_scale=True)
    return PowerSum(
        f"power_{variable}" + ("" if floor else "_no_floor"),
        f"L({variable}) = {'E + ' if floor else ''}({variable}0/{variable})^alpha",
        "Henighan et al. 2020, arXiv 2010.14701, eq. 1.1" if floor else "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1",
        (Term("E"), scale) if floor else (scale,),
    )


KAPLAN_STEPS = PowerSum(
    "kaplan_steps",
    "L(N, S) = (Nc/N)^alpha_N + (Sc/S)^alpha_S",
    "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.6",
    (
        Term("Nc", (("N", "alpha_N", -1.0),), as_scale=True),
        Term("Sc", (("S", "alpha_S", -1.0),), as_scale=True),
    ),
)

PER_RATIO = PowerSum(
    "per_ratio",
    "L(C, M) = E + (A M^eta + B M^-eta) C^-eta, M = D/N",
    "Gadre et al. 2024, arXiv 2403.08540, eq. 4",
    (
        Term("E"),
        Term("A", (("M", "eta", 1.0), ("C", "eta", -1.0))),  # a and b in the paper; here exponents have these names
        Term("B", (("M", "eta", -1.0), ("C", "eta", -1.0))),
    ),
)
