"""Train a recorded trial again, here, in a fresh directory, and say whether the result is the same.

  python -m sweep rerun 12.3k-1x32-203ktok
  python -m sweep rerun /somewhere/trial.json run.threads=2
  python -m sweep rerun 12.3k-1x32-203ktok optim.lr_multiplier=2      with overrides it is a new trial, in runs/
  python -m sweep rerun wandb:ENTITY/PROJECT/RUN                       compared with the run's summary in W&B

RUN is an id, a unique prefix of one, a run directory, a trial.json copied from another machine, or a W&B run (so, or as
the address of its page).
Exit status: 0 equal (or within the measured rounding noise), 1 different.
"""

import argparse
import sys
from pathlib import Path

from sweep.common.devices import resolve_device
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_DONE
from sweep.config.schema import RunOptions
from sweep.data.prepare import prepare
from sweep.plan.resolve import check, resolve
from sweep.plan.trial import Trial, describe
from sweep.plan.variant import variant
from sweep.runs.record import Record
from sweep.verbs.train import show_record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_name", metavar="RUN", help="an id, a unique prefix, a run directory, a trial.json or a W&B run"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], help="run.KEY=… is how it is executed; any other key makes a new trial"
    )
    parser.add_argument("--runs", default="runs", help="where recorded runs lie (default: runs)")
    parser.add_argument("--tokens", default="tokens", help="where token shards lie (default: tokens)")
    parser.add_argument("--out", default="reruns", help="where the rerun goes (default: reruns)")


def run(args: argparse.Namespace) -> int:
    from sweep.workers import rerun  # torch

    if args.run_name.startswith(("wandb:", "https://", "http://")):
        from sweep.tracking import download  # plotting

        args.run_name = str(download.run_directory(args.run_name, Path(args.out)))
    recorded = rerun.find_run(args.run_name, Path(args.runs))
    trial = Trial.read(Path(args.run_name) if args.run_name.endswith(".json") else recorded.trial)
    how = [override for override in args.overrides if override.startswith("run.")]
    what = [override for override in args.overrides if override not in how]
    options = rerun.recorded_options(recorded, how)
    device = resolve_device(options.device)
    if what:
        return _new_trial(args, trial, what, options, device)
    if recorded.record.exists() and (of := Record.read(recorded.record).trial_id) != trial.trial_id:
        raise UserError(f"{recorded.record}: is the record of {of}, not of {trial.trial_id}; remove one of the two")
    print(describe(trial), file=sys.stderr)
    tokens = Path(args.tokens)
    rerun.tokens_of(trial, tokens)
    again = rerun.train_again(trial, options, device, tokens, Path(args.out))
    if not recorded.record.exists():
        print(f"no record to compare with at {recorded.record}; the rerun is in {again.path}")
        return 0
    noise = None
    if not rerun.same_class(recorded, again):
        print("another execution class than the record's: measuring rounding noise", file=sys.stderr)
        noise = rerun.train_again(trial, rerun.other_micro_batch(trial, options), device, tokens, Path(args.out))
    verdict = rerun.compare(recorded, again, noise)
    print(f"{verdict.outcome}: {verdict.explanation}\n{again.path}")
    return 1 if verdict.outcome == "different" else 0


def _new_trial(args: argparse.Namespace, trial: Trial, overrides: list[str], options: RunOptions, device: str) -> int:
    from sweep.workers.families import train_families  # torch
    from sweep.workers.worker import Worker

    config = variant(trial, overrides)
    tokens = prepare(config.data, Path(args.tokens))
    new = resolve(config, tokens, device)
    check(new, tokens)
    print(f"a new trial: {describe(new)}", file=sys.stderr)
    worker = Worker(Path(args.runs), Path(args.tokens), options, device)
    worker.stop.listen()
    status = train_families(worker, [[new]])
    return show_record(Path(args.runs), new.trial_id, new.family_id) if status == EXIT_DONE else status
