"""Training a recorded trial again, and saying whether the result is the same.

Within one execution class a trial is bit-equal every time. Across classes it differs by rounding, which training
amplifies; how much is measured, by the same trial with another micro-batch, and a difference within that is no finding.
"""

import itertools
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_DONE
from sweep.config.compose import section
from sweep.config.schema import RunOptions
from sweep.data.prepare import prepare
from sweep.data.tokens import Tokens
from sweep.plan.grid import lay_over
from sweep.plan.trial import Trial
from sweep.runs.lookup import one_run
from sweep.runs.metrics import MetricsRow
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.workers.families import train_families
from sweep.workers.worker import Worker

NOISE_FACTOR = 3.0  # a difference of up to this many times the measured rounding noise is rounding


@dataclass
class Verdict:
    """`outcome` is equal, within-noise or different; `explanation` says by how much and between which classes."""

    outcome: str
    explanation: str


@dataclass(frozen=True)
class Executed:
    """What is read of `env.json`: the options of the run, as far as they are known."""

    options: dict[str, Any] = field(default_factory=dict)


def find_run(name: str, runs: Path) -> RunDir:
    """A run by its id, a unique prefix of it, its directory, or a `trial.json` from anywhere."""
    given = Path(name)
    if given.suffix == ".json":
        return RunDir(given.parent)
    if (given / "trial.json").exists():
        return RunDir(given)
    known = [path.parent.name for path in runs.glob("*/trial.json")]
    kinds = "an id, a unique prefix, a run directory or a trial.json"
    return RunDir.of_trial(runs, one_run(name, known, f"{runs}/", give=kinds))


def recorded_options(run: RunDir, overrides: list[str]) -> RunOptions:
    """How the run was executed, with `run.…` overrides laid over it; the defaults where that is not known."""
    options = asdict(RunOptions())
    if run.env.exists():
        options |= artefacts.read(Executed, run.env, "remove it to rerun with the default options").options
    raw = OmegaConf.create({"run": options})
    return lay_over(raw, "run", overrides) if overrides else section("run", raw["run"])


def tokens_of(trial: Trial, root: Path) -> Tokens:
    """The trial's token shards, prepared again if they are gone; a different fingerprint is refused."""
    fingerprint = trial.config.data.fingerprint
    if (root / fingerprint).exists():
        return Tokens.open(root, fingerprint)
    tokens = prepare(trial.written.data, root)
    if tokens.fingerprint != fingerprint:
        raise UserError(
            f"{trial.trial_id}: was trained on data {fingerprint}; the same source gives {tokens.fingerprint} here "
            "(other text or another version of it): copy that token folder, or train a new trial with overrides"
        )
    return tokens


def train_again(trial: Trial, options: RunOptions, device: str, tokens_root: Path, root: Path) -> RunDir:
    """Train in a fresh folder below `root`; UserError if it did not get to an end."""
    fresh = next(path for n in itertools.count(1) if not (path := root / f"{trial.trial_id}-{n}").exists())
    worker = Worker(fresh, tokens_root, options, device)
    worker.stop.listen()
    if train_families(worker, [[trial]]) != EXIT_DONE:
        raise UserError(f"{fresh}: the rerun did not finish; see the error above")
    return RunDir.of_trial(fresh, trial.trial_id)


def compare(recorded: RunDir, again: RunDir, noise_run: RunDir | None = None) -> Verdict:
    """Whether two runs of one trial agree; `noise_run` is a third, of another micro-batch than `again`."""
    old, new = Record.read(recorded.record), Record.read(again.record)
    old_curve, new_curve = _losses(recorded), _losses(again)
    if not old_curve:  # a record that was copied without its metrics
        new_curve = {}
    same_end = (old.status, old.loss_nats, old.best_loss_nats) == (new.status, new.loss_nats, new.best_loss_nats)
    classes = f"{old.device} {'+'.join(old.execution_classes)} and {new.device} {'+'.join(new.execution_classes)}"
    if same_end and old_curve == new_curve:
        return Verdict("equal", f"every logged loss is bit-equal ({len(new_curve)} rows, and the record)")
    largest, step = _largest_difference(old_curve, new_curve)
    if old.loss_nats is not None and new.loss_nats is not None:
        largest, step = max((largest, step), (abs(old.loss_nats - new.loss_nats), new.steps_done))
    said = f"losses differ by up to {largest:.3g} nats (step {step}); recorded {old.loss_nats}, now {new.loss_nats}"
    code = "" if old.code_hash == new.code_hash else f"; training code {old.code_hash} then, {new.code_hash} now"
    if noise_run is None:
        return Verdict("different", f"{said}, in one execution class{code}")
    noise, _ = _largest_difference(_losses(again), _losses(noise_run))
    within = old.status == new.status and largest <= NOISE_FACTOR * noise
    relation = f"rounding noise measured with another micro-batch is {noise:.3g} nats; classes {classes}{code}"
    return Verdict("within-noise" if within else "different", f"{said}; {relation}")


def same_class(recorded: RunDir, again: RunDir) -> bool:
    return Record.read(recorded.record).execution_classes == Record.read(again.record).execution_classes


def other_micro_batch(trial: Trial, options: RunOptions) -> RunOptions:
    """Options that change rounding and nothing else."""
    batch = trial.config.batch_sequences
    now = options.micro_batch_sequences or batch
    divisors = [size for size in range(batch, 0, -1) if batch % size == 0 and size != now]
    if divisors:
        return replace(options, micro_batch_sequences=divisors[0])
    return replace(options, threads=options.threads + 1)


def _losses(run: RunDir) -> dict[int, tuple[Any, Any]]:
    rows = artefacts.read_lines(MetricsRow, run.metrics)
    return {row.step: (row.val_loss_nats, row.train_loss_nats) for row in rows}


def _largest_difference(one: dict[int, tuple[Any, Any]], two: dict[int, tuple[Any, Any]]) -> tuple[float, int]:
    """The largest difference of validation losses, and its step; infinite where one has a row that the other lacks."""
    if one.keys() != two.keys():
        return float("inf"), min(one.keys() ^ two.keys())
    differences = [(abs(one[s][0] - two[s][0]), s) for s in one if None not in (one[s][0], two[s][0])]
    return max(differences, default=(0.0, 0))
