"""Does the fitted floor E come out at a known entropy rate? Ten sweeps on ten synthetic languages, trained for real.

  python -m benchmarks.floor [--folder DIR] [--seeds 10]

Each seed makes its own language (`data=markov`), its own initial weights and its own order of the data. A nominal 90%
interval should contain the rate about nine times in ten. Finished trials are kept in the folder: run again to go on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.provenance import save
from sweep.environment import ROOT

GRID = [
    "sweep=markov",
    "model.params=1.7k,3k,5k,7k,12k,28k",
    "budget.tokens=125k,250k,500k,1M,2M",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("floor_benchmark"))
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    rows = [one(seed, args.folder) for seed in range(args.seeds)]
    measured = {
        "command": f"python -m benchmarks.floor --seeds {args.seeds}",
        "grid": GRID,
        "inside": sum(row["inside"] for row in rows),
        "undetermined": sum(row["interval"] is None for row in rows),
        "of": len(rows),
        "target": "at least 8 of 10",
        "rows": rows,
    }
    sys.stdout.write(save("floor", ["torch", "numpy", "scipy"], measured).read_text())


def one(seed: int, folder: Path) -> dict:
    """One sweep: the language's entropy rate, the fitted E and its 90% interval."""
    name = f"floor-{seed}"
    paths = [f"paths.{kind}={folder / kind}" for kind in ("runs", "sweeps", "tokens")]
    words = [*GRID, *paths, f"sweep.name={name}", f"seed={seed}", f"data.seed={seed}"]
    sweep = folder / "sweeps" / name
    run("launch", "--no-report", *words)
    run("collect", str(sweep))
    run("fit", str(sweep))
    fit = json.loads((sweep / "fit.json").read_text())
    rate = json.loads((sweep / "meta.json").read_text())["reference_lines"]["entropy_rate"]
    interval = fit["intervals"]["E"]  # None where the runs do not determine E
    row = {"seed": seed, "entropy_rate_nats": rate, "E": fit["params"]["E"], "interval": interval}
    print(row, file=sys.stderr, flush=True)
    return row | {"inside": interval is not None and interval[0] <= rate <= interval[1]}


def run(verb: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "sweep", verb, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
