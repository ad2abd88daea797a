"""Seconds of `python -m sweep status` for a sweep of 10,000 trials, from the start of the process to its end.

  python -m benchmarks.status

The runs are made up: half are finished, a tenth of the families is being trained, a tenth failed, the rest waits. The
sweep has one submission of 250 elements; the queue is asked where Slurm is on this machine and is reached by its name,
else that it does not answer is part of what is shown.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.collecting import OVERRIDES, make_run
from benchmarks.provenance import save
from slurm import commands
from slurm.submission import ArrayTask, Chunk, Submission
from sweep.common import files
from sweep.config.schema import SlurmSection
from sweep.data.placeholder import PlaceholderTokens
from sweep.plan.plan import Plan, make_plan
from sweep.plan.storage import save as save_plan
from sweep.runs.claim import Holder
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
ELEMENTS = 250


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={Path(folder) / name}" for name in ("runs", "sweeps", "tokens")]
        plan = make_plan([*OVERRIDES, *paths], lambda config, root: PlaceholderTokens(64))
        sweep = SweepDir(Path(folder) / "sweeps" / "big")
        save_plan(plan, sweep, OVERRIDES)
        make_runs(plan)
        submit(plan, sweep)
        seconds, cpu, counts = zip(*(timed(sweep) for _ in range(REPEATS)), strict=True)
    measured = {
        "command": "python -m benchmarks.status",
        "trials": len(plan.trials),
        "families": len(plan.families()),
        "elements": ELEMENTS,
        "slurm_answers": commands.available(),
        "counts": counts[-1],
        "cpu_seconds": {"min": min(cpu), "median": statistics.median(cpu), "max": max(cpu)},
        "load_average": os.getloadavg()[0],  # above the number of cores, other programs have slowed this down
        "seconds": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "target_seconds": 2,
    }
    path = save("status", ["rich", "psutil"], measured)
    sys.stdout.write(path.read_text())


def timed(sweep: SweepDir) -> tuple[float, float, dict[str, int]]:
    """The seconds and CPU seconds of a new process (with Slurm's programs), and the counts that it printed."""
    start, before = time.perf_counter(), os.times()
    ended = subprocess.run(
        [sys.executable, "-m", "sweep", "status", str(sweep.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    words = ended.stdout.splitlines()[0].partition("trials")[2].split()
    return seconds, cpu, dict(zip(words[1::2], map(int, words[::2]), strict=True))


def make_runs(plan: Plan) -> None:
    """Write run folders: of ten families five are finished, one is being trained, one failed, three have not begun."""
    for number, family in enumerate(plan.families()):
        kind = number % 10
        trunk = RunDir.of_trunk(plan.runs, family[0].family_id)
        if kind < 7:
            start: dict[str, object] = {
                "attempt": 1,
                "time": time.time(),
                "job": None,
                "host": "node",
                "pid": 1,
                "saved_state": {},
                "log": None,
            }
            files.append_json(trunk.attempts, {"event": "start", **start})
            files.create_json(trunk.path / "claim.000001.json", asdict(Holder.here()))
        if kind < 5:
            for trial in family:
                make_run(RunDir.of_trial(plan.runs, trial.trial_id), trial)
        elif kind == 5:
            progress = {"trial_id": family[0].trial_id, "step": 1, "tokens_per_second": 1e5}
            (trunk.path / "heartbeat.json").write_text(json.dumps({"time": time.time() + 3600, **progress}))
        elif kind == 6:
            end = {"event": "end", "attempt": 1, "time": time.time(), "outcome": "failed"}
            files.append_json(trunk.attempts, {**end, "error": "RuntimeError: made up"})
            (trunk.path / "claim.000001.released").touch()
            for trial in family:
                run = RunDir.of_trial(plan.runs, trial.trial_id)
                run.path.mkdir()
                run.error.write_text("Traceback (most recent call last):\n  File x\nRuntimeError: made up\n")


def submit(plan: Plan, sweep: SweepDir) -> None:
    """One submission of all families, as it would lie on disk."""
    folder = sweep.path / "slurm" / "001"
    chunk = Chunk("big.001.0-benchmark", "array-0.sbatch", 1, "30m", (0, ELEMENTS - 1))
    made = Submission(
        number=1,
        tag="benchmark",
        time=time.time() - 60,
        sweep=str(sweep.path),
        command=[],
        overrides=[],
        code="",
        commit=None,
        dirty=False,
        unprepared=False,
        slurm=SlurmSection(),
        chunks=[chunk],
        prepare=None,
        collector=None,
        folder=folder,
    )
    (folder / "logs").mkdir(parents=True)
    made.write()
    ids = [family[0].family_id for family in plan.families()]
    made.write_tasks(ArrayTask(task, "30m", ids[task::ELEMENTS], 4, 60.0) for task in range(ELEMENTS))


if __name__ == "__main__":
    main()
