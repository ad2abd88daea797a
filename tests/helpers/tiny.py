"""Trials of a few thousand parameters and some tens of steps, trained in the test's own process, and what they gave."""

import json
import random
from pathlib import Path

from sweep.common.files import append_json
from sweep.plan.plan import Plan
from sweep.plan.storage import save
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here

STEP_TOKENS = 128  # of seq_len=32 and batch.sequences=4
# Never the same twice.
CLOCK = ("seconds", "tokens_per_second", "mfu", "flops_ceiling", "wall_seconds", "own_seconds", "finished_at")
WAY = ("shared_steps", "execution_class", "execution_classes", "code_hash")  # how a result was come by

OVERRIDES = [
    "model.depth=1",
    "model.width=16",
    "model.heads=1",
    "seq_len=32",
    "batch.sequences=4",
    "optim.lr_base=3e-3",
    "eval.sequences=8",
    "eval.sample_tokens=4",
    "eval.log_every_steps=5",
    f"schedule.warmup_tokens={4 * STEP_TOKENS}",
    "run.device=cpu",
    "run.checkpoint_seconds=1000",
]


def steps(*numbers: int) -> str:
    """A budget, or several as an axis, in steps."""
    return "budget.tokens=" + ",".join(str(number * STEP_TOKENS) for number in numbers)


def write_corpus(path: Path, documents: int = 240, seed: int = 0) -> Path:
    """Sentences of a small made-up language, one document a line."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    texts = (" ".join(draw.choices(words, k=draw.randint(20, 70))) + "." for _ in range(documents))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def train(plan: Plan, runs: Path | str | None = None, **worker) -> int:
    """Train a plan's families here; the worker's exit status."""
    from sweep.workers.families import train_families  # and with it torch, which most test files do without
    from sweep.workers.worker import Worker

    options = plan.config.run
    runs = Path(runs) if runs is not None else plan.runs
    process = Worker(runs, Path(plan.config.paths.tokens), options, plan.device, **worker)
    return train_families(process, plan.families())


def make_sweep(overrides: list[str], name: str = "small") -> tuple[Plan, SweepDir]:
    """A planned and saved sweep, not launched."""
    plan = plan_here([f"sweep.name={name}", *overrides])
    sweep = SweepDir(Path(plan.config.paths.sweeps) / name)
    save(plan, sweep, overrides)
    return plan, sweep


def attempt(trunk: RunDir, event: str, **row) -> None:
    """A line of a family's attempts by hand."""
    append_json(trunk.attempts, {"event": event, **row})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(runs: Path | str, trial_id: str) -> list[dict]:
    """A trial's metrics without the times."""
    rows = lines(RunDir.of_trial(Path(runs), trial_id).metrics)
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def samples(runs: Path | str, trial_id: str) -> list[dict]:
    return lines(RunDir.of_trial(Path(runs), trial_id).samples)


def record(runs: Path | str, trial_id: str) -> dict:
    return json.loads(RunDir.of_trial(Path(runs), trial_id).record.read_text())


def result(runs: Path | str, trial_id: str) -> dict:
    """A record without times and without the way to it: what must be bit-equal however a trial was trained."""
    return {key: value for key, value in record(runs, trial_id).items() if key not in (*CLOCK, *WAY)}


def everything(runs: Path | str, trial_id: str) -> tuple:
    """All that a trial produced: result, curve, samples."""
    return result(runs, trial_id), curve(runs, trial_id), samples(runs, trial_id)
