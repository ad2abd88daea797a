"""What can be removed from disk without losing a result, and removing it."""

from dataclasses import dataclass
from pathlib import Path

from sweep.runs import attempt_log, claim
from sweep.runs.planned import read_trial_file
from sweep.runs.rundir import RunDir


@dataclass(frozen=True)
class Removable:
    """A file that can go, and why."""

    path: Path
    why: str
    bytes: int


def removable(runs: Path, trunks: bool, weights: bool) -> list[Removable]:
    """Leftovers always; trunk checkpoints and final weights if asked for. A family that is being trained is left alone.

    Without its trunk's checkpoints, a larger budget of a family trains from step 0.
    """
    found = []
    trained = set()
    for trunk in sorted((runs / "trunks").glob("*")):
        if claim.held_by(trunk) is not None:
            trained.add(trunk.name)
            continue
        states = RunDir(trunk).stable_steps()
        finished = [attempt.outcome for attempt in attempt_log.read(RunDir(trunk))][-1:] == ["done"]
        kept = [] if trunks and finished else states  # an unfinished family resumes from its last one
        for step in states:
            if step not in kept[-1:]:
                why = "trunk checkpoint" if trunks else "trunk checkpoint that a later one replaces"
                found.append(_removable(RunDir(trunk).stable(step), why))
        found += [_removable(path, "left by a killed writer") for path in sorted(trunk.glob(".*.tmp"))]
    for path in sorted(runs.glob("*/")):
        run = RunDir(path)
        if trained and run.trial.exists() and read_trial_file(run.trial).family_id in trained:
            continue
        found += [_removable(left, "left by a killed writer") for left in sorted(path.glob(".*.tmp"))]
        if run.record.exists() and run.checkpoint.exists():
            found.append(_removable(run.checkpoint, "optimizer state of a trial that has a record"))
        if weights and run.record.exists() and run.weights.exists():
            found.append(_removable(run.weights, "final weights"))
    return found


def stuck_claims(runs: Path) -> list[Path]:
    """The trunks' folders of families whose claim counts although nobody renews it any more."""
    return [trunk for trunk in sorted((runs / "trunks").glob("*")) if claim.is_silent(trunk)]


def _removable(path: Path, why: str) -> Removable:
    return Removable(path, why, path.stat().st_size)
