"""Does the fitted floor E equal a known entropy rate? Ten sweeps on ten synthetic languages, really trained.

  python -m benchmarks.floor [--folder DIR] [--seeds 10] [--first-seed 0]

Each seed makes its own language (`data=markov`), its own initial weights and its own order of the data, and is
trained and fitted by `sweep=markov`. A nominal 90% interval should contain the rate about nine times in ten. What the
true model reads the validation text at (its loss there, which differs from the rate by sampling) is given beside it.
Grid and language were chosen on seeds from 100 up. Finished trials are kept in the folder: run again to go on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.provenance import save
from sweep.common.checkout import ROOT
from sweep.data.markov import MarkovSource
from sweep.data.tokens import Tokens, windows
from sweep.plan.storage import planned_trials
from sweep.plan.trial import TrialConfig
from sweep.report import answers, results
from sweep.runs.sweepdir import SweepDir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("floor_benchmark"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    rows = [one(seed, args.folder) for seed in range(args.first_seed, args.first_seed + args.seeds)]
    measured = {
        "command": f"python -m benchmarks.floor --seeds {args.seeds} --first-seed {args.first_seed}",
        "inside": sum(row["inside"] for row in rows),
        "undetermined": sum(row["interval"] is None for row in rows),
        "of": len(rows),
        "target": "at least 8 of 10",
        "mean_error_nats": float(np.mean([row["E"] - row["entropy_rate_nats"] for row in rows])),
        "device_seconds": sum(row["device_seconds"] for row in rows),
        "rows": rows,
    }
    sys.stdout.write(save("floor", ["torch", "numpy", "scipy"], measured).read_text())


def one(seed: int, folder: Path) -> dict:
    """Run one sweep; the entropy rate of its language, the fitted E and the 90% interval of E."""
    name = f"floor-{seed}"
    paths = [f"paths.{kind}={folder / kind}" for kind in ("runs", "sweeps", "tokens")]
    sweep = folder / "sweeps" / name
    run("launch", "--no-report", "sweep=markov", *paths, f"sweep.name={name}", f"seed={seed}", f"data.seed={seed}")
    run("collect", str(sweep))
    run("fit", str(sweep))
    fit = json.loads((sweep / "fit.json").read_text())
    rate = json.loads((sweep / "meta.json").read_text())["reference_lines"]["entropy_rate"]
    interval = fit["intervals"]["E"]  # None where the runs do not determine E
    row = {
        "seed": seed,
        "entropy_rate_nats": rate,
        "validation_text_nats": true_model_nats(planned_trials(SweepDir(sweep))[0].config, folder / "tokens"),
        "E": fit["params"]["E"],
        "interval": interval,
        "inside": interval is not None and interval[0] <= rate <= interval[1],
        "alpha": fit["params"]["alpha"],
        "beta": fit["params"]["beta"],
        "verdict": fit["certificate"]["verdict"],
        "device_seconds": answers.training_seconds(results.load(sweep)),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def true_model_nats(config: TrialConfig, tokens_root: Path) -> float:
    """The loss of the true model on a trial's validation set, in nats per token."""
    tokens = Tokens.open(tokens_root, config.data.fingerprint)
    windows_NT = windows(tokens.validation, config.model.seq_len)[: config.eval.sequences]
    P = MarkovSource(**tokens.meta["source"]).transitions
    return float(-np.log(P[windows_NT[:, :-1], windows_NT[:, 1:]]).mean())


def run(verb: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "sweep", verb, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
