"""Whole sweeps on a real Slurm, from `launch` to the report, through what happens on clusters.

Afterwards every trial is recorded once, nobody trained what another was training, and the results are those of a quiet
run here. To meet a worker at work whatever the machine's speed, tests freeze it (SIGSTOP) at its first new checkpoint;
Slurm wakes it by itself (SIGCONT) where it tells it to end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from slurm.submission import submissions
from sweep.plan.plan import Plan
from sweep.runs import attempt_log
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny
from tests.helpers.processes import ending_processes
from tests.helpers.slurm_cluster import ROOT, clear, elements, ended, release, submit, wait_until
from tools.devcluster.cluster import CONTROLLER, Cluster

pytestmark = pytest.mark.timeout(540)  # the sweeps run in the set-up of the first tests
HERE = ["sweep.name=storm", "model.width=8,16,24,32", tiny.steps(100, 300, 1000), "run.checkpoint_seconds=0.3"]
THERE = [
    "cluster=devcluster",
    "cluster.seconds_per_step=1",  # so that an element of half an hour holds one family
    "cluster.slurm.gpus=1",
    "cluster.slurm.cpus=1",
    "cluster.slurm.time_buckets=[30m]",
    "cluster.slurm.signal_seconds=40",  # Slurm looks at time limits every 30 s
    "cluster.slurm.max_array_size=3",
    "wandb.mode=off",
]


@dataclass
class Story:
    """A sweep on a cluster, and what became of it."""

    cluster: Cluster
    folder: Path
    overrides: list[str]
    roles: tuple[str, ...] = ()  # of the families, in the storm
    crashed: float = 0.0  # when the node's power failed, seconds since the epoch

    @property
    def sweep(self) -> SweepDir:
        return SweepDir(self.folder / "sweeps" / "storm")

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def start_launch(self, **environment: str) -> subprocess.Popen[str]:
        typed = [sys.executable, "-m", "sweep", "launch", *self.overrides, *THERE]
        given = self.cluster.environment() | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.Popen(
            typed, cwd=self.folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def launch(self, **environment: str) -> str:
        """What a launch said."""
        launch = self.start_launch(**environment)
        said = launch.communicate()[0]
        assert launch.returncode == 0, said
        return said

    @cached_property
    def plan(self) -> Plan:
        """The same trials; their data must be there."""
        return plan_here(self.overrides)

    @property
    def families(self) -> list[str]:
        """The smallest model's first."""
        return [trials[0].family_id for trials in self.plan.families()]

    def element_of(self, family: str) -> str:
        """The newest array element that holds a family."""
        for submission in reversed(submissions(self.sweep)):
            for task in submission.tasks():
                if family in task.families:
                    chunk = submission.chunk_of(task.task)
                    return f"{chunk.job_id}_{chunk.index(task.task)}"
        raise KeyError(family)

    def state(self, family: str) -> str:
        element = self.element_of(family)
        return elements(self.cluster, int(element.partition("_")[0]))[element]

    def node(self, family: str) -> str:
        return self.cluster.ask("squeue", "--noheader", f"--jobs={self.element_of(family)}", "--format=%N").strip()

    def attempts(self, family: str) -> list[attempt_log.Attempt]:
        return attempt_log.read(RunDir.of_trunk(self.runs, family))

    def freeze(self, family: str, number: int) -> int:
        """Wait until this attempt has left a new checkpoint, stop its worker there; the worker's pid."""
        wait_until(lambda: len(self.attempts(family)) == number, 120, self.cluster)
        attempt = self.attempts(family)[-1]
        trials = [RunDir.of_trial(self.runs, trial.trial_id) for trial in self.plan.trials if trial.family_id == family]
        folders = [RunDir.of_trunk(self.runs, family).path, *(run.path for run in trials)]

        def has_progressed() -> bool:
            left = [file for folder in folders for name in ("*.pt", "record.json") for file in folder.glob(name)]
            return any(file.stat().st_mtime > attempt.started for file in left if file.exists())

        wait_until(has_progressed, 60, self.cluster)
        os.kill(attempt.start.pid, signal.SIGSTOP)
        return attempt.start.pid

    def end(self) -> None:
        """Wait for the last collector."""
        collector = submissions(self.sweep)[-1].collector
        assert collector is not None
        wait_until(lambda: ended(self.cluster, collector.job_id), 180, self.cluster)

    def is_told(self, pid: int, number: signal.Signals) -> bool:
        """Whether a frozen process has a signal waiting for it, or was ended since."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True
        waiting = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
        return bool(int(waiting, 16) >> (number - 1) & 1)


def new_story(cluster: Cluster, folder: Path, overrides: list[str]) -> Story:
    clear(cluster)
    return Story(
        cluster, folder, [*overrides, *HERE, *(f"paths.{name}={folder / name}" for name in ("runs", "sweeps"))]
    )


@pytest.fixture(scope="module")
def alone(overrides, tmp_path_factory):
    """Runs of the same trials, trained in this process, undisturbed."""
    runs = tmp_path_factory.mktemp("alone")
    assert tiny.train(plan_here([*overrides, *HERE]), runs) == 0
    return runs


@pytest.fixture(scope="module")
def calm(cluster_without_accounting, overrides, tmp_path_factory):
    """No accounting, no data yet. A launch is killed before it notes an array's id, then two launch at once."""
    folder = tmp_path_factory.mktemp("calm")
    unprepared = [word for word in overrides if not word.startswith("paths.tokens=")]
    story = new_story(cluster_without_accounting, folder, [*unprepared, f"paths.tokens={folder}/tokens"])
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/bash\njob=$({shutil.which("sbatch")} "$@") || exit\n'
        'case "$*" in *array-0*) kill -9 $PPID ;; esac\necho "$job"\n'
    )
    sbatch.chmod(0o755)
    with ending_processes():
        killed = story.start_launch(PATH=f"{sbatch.parent}:{story.cluster.environment()['PATH']}")
        said = killed.communicate()[0]
        assert killed.returncode == -signal.SIGKILL, said
        both = [story.start_launch(), story.start_launch()]
        said = [one.communicate()[0] for one in both]
        assert sorted(one.returncode for one in both) in ([0, 0], [0, 2]), said
    story.end()
    return story


@pytest.fixture(scope="module")
def storm(cluster, overrides, tmp_path_factory):
    """A cancelled element, a preempted node, a controller restarted, a node that loses its slurmd and then its power, a
    job whose time is up, and a second launch for what is missing."""
    story = new_story(cluster, tmp_path_factory.mktemp("storm"), overrides)
    story.launch()
    at_work = {family: story.freeze(family, 1) for family in story.families}
    first, second, third, cancelled = sorted(story.families, key=story.node)
    assert [story.node(family) for family in (first, second, third, cancelled)] == ["n1", "n1", "n2", "n2"]
    story.roles = first, second, third, cancelled

    cluster.ask("scancel", story.element_of(cancelled))
    cluster.stop(CONTROLLER)
    cluster.start(CONTROLLER)

    submit(cluster, "true", "--partition=high", "--nodes=1", "--gpus=2", "--nodelist=n1")
    for family in (first, second):
        wait_until(lambda family=family: story.state(family) == "PENDING", cluster=cluster)
        cluster.ask("scontrol", "update", f"JobId={story.element_of(family)}", "ReqNodeList=n1")
    for family in (first, second):
        release(cluster, story.element_of(family))
    assert story.state(cancelled) == "CANCELLED"

    cluster.ask("scontrol", "update", f"JobId={story.element_of(third)}", "EndTime=now+45")  # told 40 s before
    at_work |= {family: story.freeze(family, 2) for family in (first, second)}
    cluster.stop("n1", signal.SIGKILL)
    cluster.ask("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    wait_until(lambda: story.state(first) == story.state(second) == "PENDING", cluster=cluster)
    os.kill(at_work[first], signal.SIGCONT)  # goes on where Slurm knows nothing of it any more
    wait_until(lambda: story.attempts(first)[-1].outcome == "done", cluster=cluster)
    cluster.crash("n1")
    story.crashed = time.time()
    cluster.start("n1")

    wait_until(lambda: story.is_told(at_work[third], signal.SIGUSR2), 90, cluster)
    with contextlib.suppress(ProcessLookupError):
        os.kill(at_work[third], signal.SIGCONT)
    story.launch()
    story.end()
    return story


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slurm) for name in ("calm", "storm")])
def story(request):
    return request.getfixturevalue(request.param)


def test_every_trial_is_recorded_once_and_every_row_is_there_once(story):
    for trial in story.plan.trials:
        assert tiny.record(story.runs, trial.trial_id)["status"] == "finished"
        steps = [row["step"] for row in tiny.curve(story.runs, trial.trial_id)]
        assert steps == sorted(set(steps))
        assert steps[-1] == trial.config.steps
    assert len(list(story.runs.glob("*/record.json"))) == len(story.plan.trials) == 12


def test_results_are_bit_equal_to_those_of_a_quiet_run_here(story, alone):
    for trial in story.plan.trials:
        assert tiny.everything(story.runs, trial.trial_id) == tiny.everything(alone, trial.trial_id)
        for key in ("execution_class", "execution_classes", "code_hash"):
            assert tiny.record(story.runs, trial.trial_id)[key] == tiny.record(alone, trial.trial_id)[key]


def test_nobody_trains_what_another_is_training(story):
    for family in story.families:
        tries = story.attempts(family)
        for one, next_one in pairwise(tries):
            assert (one.ended or story.crashed) < next_one.started
        assert [one.outcome for one in tries if one.outcome == "done"] == ["done"]


def test_the_collector_reports(story):
    table = pd.read_parquet(story.sweep.path / "table.parquet")
    assert list(table["status"]) == ["finished"] * 12
    assert json.loads((story.sweep.path / "fit.json").read_text())
    assert (story.sweep.path / "report" / "report.html").exists()


def test_arrays_are_chunked_by_the_largest_index_that_slurm_takes(story):
    assert [chunk.tasks for chunk in submissions(story.sweep)[0].chunks] == [(0, 2), (3, 3)]


def test_launches_that_die_or_meet_train_nothing_twice(calm):
    assert [len(calm.attempts(family)) for family in calm.families] == [1] * 4


def test_what_happened_is_told_by_the_attempts(storm):
    first, second, third, cancelled = storm.roles
    told = {family: [one.outcome for one in storm.attempts(family)] for family in storm.roles}
    assert told == {
        first: ["stopped", "done"],
        second: ["stopped", None, "done"],
        third: ["stopped", "done"],
        cancelled: ["stopped", "done"],
    }
    starts = {family: [one.job.restart for one in storm.attempts(family)] for family in storm.roles}
    assert starts == {first: [0, 1], second: [0, 1, 2], third: [0, 1], cancelled: [0, 0]}


def test_a_cancelled_element_stays_cancelled_and_is_all_that_the_next_launch_submits(storm):
    *_, cancelled = storm.roles
    one, two = submissions(storm.sweep)
    assert [task.families for task in two.tasks()] == [[cancelled]]
    (array,) = {attempt.job.id.partition("_")[0] for attempt in storm.attempts(cancelled)[:1]}
    assert int(array) in [chunk.job_id for chunk in one.chunks]
