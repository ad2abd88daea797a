"""How long a fit takes, beside what people use, on one simulated table of 240 rows, on one core, in one run.

  OPENBLAS_NUM_THREADS=1 python -m benchmarks.fit_speed          (pip install chinchilla, for the second peer)

Ours: one certified fit (scan, polish, certificate), and 4,000 bootstrap refits. First peer: the classic grid of 4,500
starts (Hoffmann et al. 2022, section D.2), each minimised by scipy's L-BFGS-B with numerical gradients, summed
Huber. Second peer: the `chinchilla` package with its own objective and optimizer (asymmetric absolute error, BFGS in
extended precision), one process, on 243 starts over the same ranges; its time for 4,500 is that times 4500/243.
Then how our time grows with the rows. Seconds are CPU seconds of this one process: other work on the machine
does not count.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time

import numpy as np
from scipy.optimize import minimize

from benchmarks.fit_simulation import BESIROGLU, table
from benchmarks.provenance import save
from sweep.fit import bootstrap
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named
from sweep.fit.rows import Rows, prepare
from sweep.fit.solve import solve

LAW, HUBER = law_named("additive"), objective_named("huber")
NOISE = {"family_sd": 0.005, "run_sd": 0.005}
REFITS = 4000
STARTS = {  # Hoffmann et al. 2022, section D.2: 5 * 6 * 6 * 5 * 5 = 4,500
    "e": [-1.0, -0.5, 0.0, 0.5, 1.0],
    "a": [0.0, 5.0, 10.0, 15.0, 20.0, 25.0],
    "b": [0.0, 5.0, 10.0, 15.0, 20.0, 25.0],
    "alpha": [0.0, 0.5, 1.0, 1.5, 2.0],
    "beta": [0.0, 0.5, 1.0, 1.5, 2.0],
}


def main() -> None:
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        sys.exit("set OPENBLAS_NUM_THREADS=1: the comparison is on one core")
    rows = prepare(table(BESIROGLU, families=48, **NOISE))
    ours = measure_ours(rows)
    peers = {"grid_of_4500_starts": measure_grid(rows), "chinchilla": measure_chinchilla(rows)}
    for name, peer in peers.items():
        if "seconds" in peer:
            peer["times_as_long_as_ours"] = round(peer["seconds"] / ours["fit_seconds"])
            print(name, {key: value for key, value in peer.items() if key != "params"})
    growth = [measure_growth(n) for n in (1_000, 10_000, 100_000)]
    print(ours, growth)
    packages = ["numpy", "scipy", "pandas"] + (["chinchilla"] if "seconds" in peers["chinchilla"] else [])
    measured = {"command": "OPENBLAS_NUM_THREADS=1 python -m benchmarks.fit_speed", "seed": 0, "cores_used": 1}
    measured |= {"rows": len(rows.row), "ours": ours, "peers": peers, "growth": growth}
    save("fit_speed", packages, measured)


def measure_ours(rows: Rows) -> dict:
    x, fits, refits = rows.variables(), [], []
    solution = solve(LAW, x, rows.loss, HUBER)
    for _ in range(50):
        started = time.process_time()
        solution = solve(LAW, x, rows.loss, HUBER)
        fits.append(time.process_time() - started)
    for seed in range(5):
        started = time.process_time()
        bootstrap.resample(solution, rows.loss, rows.family, REFITS, seed)
        refits.append(time.process_time() - started)
    return {
        "fit_seconds": round(statistics.median(fits), 4),
        "refits": REFITS,
        "refits_seconds": round(statistics.median(refits), 2),
        "objective": solution.value,
        "params": solution.params,
        "certificate": vars(solution.certificate),
    }


def measure_grid(rows: Rows) -> dict:
    log_N, log_D, log_L = np.log(rows.N), np.log(rows.D), np.log(rows.loss)

    def objective(theta: np.ndarray) -> float:
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(log_N, e), a - alpha * log_N, b - beta * log_D])
        top = terms.max(axis=0)
        size = np.abs(top + np.log(np.exp(terms - top).sum(axis=0)) - log_L)
        inner = np.minimum(size, HUBER.delta)
        return float(np.sum(inner * (size - inner / 2)))

    started, ends = time.process_time(), []
    for start in itertools.product(*STARTS.values()):
        found = minimize(objective, start, method="L-BFGS-B")
        ends.append((float(found.fun), found.x))
    seconds = time.process_time() - started
    values = np.array([value for value, _ in ends])
    e, a, b, alpha, beta = min(ends, key=lambda end: end[0])[1]
    return {
        "seconds": round(seconds, 1),
        "starts": len(ends),
        "objective": float(values.min()),
        "starts_within_1_percent_of_their_best": int(np.sum(values <= 1.01 * values.min())),
        "params": {name: float(v) for name, v in zip(BESIROGLU, (*np.exp([e, a, b]), alpha, beta), strict=True)},
    }


def measure_chinchilla(rows: Rows) -> dict:
    try:
        from chinchilla import Chinchilla
    except ImportError:
        return {"skipped": "not installed: pip install chinchilla"}
    grid = {name: [values[0], values[len(values) // 2], values[-1]] for name, values in STARTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        peer = Chinchilla(folder, param_grid=grid, seed_ranges={"C": (1e15, 1e17), "N_to_D": (10, 100)}, log_level=50)
        for N, D, C, loss in zip(rows.N, rows.D, rows.C, rows.loss, strict=True):
            peer.database.append(C=C, N=N, D=D, loss=loss)
        started = time.process_time()
        peer.fit(parallel=False)
        seconds = time.process_time() - started
        params = {name: float(getattr(peer, name)) for name in BESIROGLU}
    starts = 3 ** len(grid)
    return {"seconds": round(seconds * 4500 / starts, 1), "starts": starts, "starts_seconds": seconds, "params": params}


def measure_growth(n: int) -> dict:
    """Seconds of one fit and of 100 refits at n rows, five to a family."""
    rows = prepare(table(BESIROGLU, families=n // 5, **NOISE))
    started = time.process_time()
    solution = solve(LAW, rows.variables(), rows.loss, HUBER)
    fitted = time.process_time()
    weight_Bn = np.random.default_rng(0).exponential(size=(100, n // 5)).repeat(5, axis=1)
    bootstrap.refit(solution, np.log(rows.loss), weight_Bn)
    refitted = time.process_time()
    return {
        "rows": n,
        "fit_seconds": round(fitted - started, 3),
        "100_refits_seconds": round(refitted - fitted, 2),
        "verdict": solution.certificate.verdict,
    }


if __name__ == "__main__":
    main()
