"""Train one trial here, without any sweep.

  python -m sweep train model.params=1M budget.tokens=2M
  python -m sweep train model=gpt2 data=markov budget.flops=1e12 run.device=cpu
  python -m sweep train -m model.params=1M,3M budget.tokens=2M       Hydra's multirun, one by one
  python -m sweep train -m hydra/launcher=sweep_slurm model.params=1M,3M budget.tokens=2M

Its run directory is runs/<trial_id>/. A trial that is already trained there is shown, not trained again.
"""

import argparse
import sys
from pathlib import Path

from sweep.common.devices import attention_backend, resolve_device
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_DONE
from sweep.common.units import duration
from sweep.plan.multirun import multirun
from sweep.plan.trial import describe
from sweep.runs import claim
from sweep.runs.progress import Progress
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.tracking.mirror_process import Sidecar, of_one
from sweep.verbs.plan import plan_here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides: key=value, group=NAME")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="Hydra's multirun: key=a,b,c, hydra/launcher=NAME"
    )


def run(args: argparse.Namespace) -> int:
    if args.multirun:
        return multirun(args.overrides, _train_one)
    return _train_one(args.overrides)


def _train_one(overrides: list[str]) -> int:
    from sweep.workers.families import train_families  # torch
    from sweep.workers.worker import Worker

    plan = plan_here(overrides)
    if len(plan.trials) != 1:
        grid = " ".join(overrides)
        raise UserError(f"{len(plan.trials)} trials: train takes one; for a grid: python -m sweep launch {grid}")
    (trial,) = plan.trials
    attention_backend(plan.config.run.backend, resolve_device(plan.device))
    estimate = plan.estimates[trial.trial_id]
    expected = f"{trial.epochs:.2g} epochs, about {duration(estimate.seconds)} ({estimate.source})"
    print(f"{describe(trial)}, {expected}", file=sys.stderr)
    paths, options = plan.config.paths, plan.config.run
    worker = Worker(Path(paths.runs), Path(paths.tokens), options, plan.device, hear=_print_validation)
    worker.stop.listen()
    task = of_one(trial.facts, paths, plan.config.wandb)
    sidecar = Sidecar(task, RunDir.of_trial(worker.runs, trial.trial_id).path / "wandb" / "log.txt")
    status = train_families(worker, [[trial]])
    for line in sidecar.close():
        print(line, file=sys.stderr)
    if status == EXIT_DONE:
        return show_record(Path(paths.runs), trial.trial_id, trial.family_id)
    print(f"not finished; the same command goes on from {paths.runs}/{trial.trial_id}", file=sys.stderr)
    return status


def _print_validation(progress: Progress) -> None:
    row = progress.row
    if row is not None and row.val_loss_nats is not None:
        print(
            f"step {row.step:>7}  {row.phase:<6}  validation {row.val_loss_nats:.4f} nats  "
            f"train {row.train_loss_nats:.4f}  lr {row.lr:.2e}  {row.tokens_per_second:,.0f} tokens/s",
            file=sys.stderr,
        )


def show_record(runs: Path, trial_id: str, family_id: str) -> int:
    """Print how a trial ended; 1, and who holds its family, where it has not."""
    run = RunDir.of_trial(runs, trial_id)
    if not run.record.exists():
        trunk = RunDir.of_trunk(runs, family_id)
        print(f"{run.path}: not trained here, it is being trained by {claim.holder_of(trunk.path)}", file=sys.stderr)
        return 1
    record = Record.read(run.record)
    loss = f"{record.loss_nats:.4f} nats per token" if record.loss_nats is not None else "no loss"
    per_byte = f", {record.bits_per_byte:.4f} bits per byte" if record.bits_per_byte is not None else ""
    print(f"{record.status}: {loss}{per_byte}, {duration(record.wall_seconds)}; {run.path}")
    return 0
