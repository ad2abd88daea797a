"""Launching on a real Slurm: what is in its queue afterwards, whatever happens on the way. Jobs are held, none runs."""

import json
import os
import shutil
import stat
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from slurm import commands
from slurm.submission import exclusive
from sweep.common.checkout import ROOT
from sweep.runs import claim
from sweep.runs.sweepdir import SweepDir
from tests.helpers.held_submissions import HELD, families, there
from tests.helpers.slurm_cluster import wait_until

pytestmark = pytest.mark.usefixtures("end_processes")


def elements(*held):
    """`job_index` of all that the queue holds of these submissions' arrays."""
    return sorted(job.element for submission in held for job in commands.queued(c.name for c in submission.chunks))


def test_everything_is_in_the_queue_and_written_down(launch_held, monkeypatch, cluster):
    key = uuid.uuid4().hex
    monkeypatch.setenv("WANDB_API_KEY", key)
    status, out, _ = launch_held("seed=range(25)", "cluster.slurm.max_running=5")
    assert status == 0
    (submission,) = there()
    assert [chunk.tasks for chunk in submission.chunks] == [(0, 10), (11, 21), (22, 24)]  # MaxArraySize is 11
    assert submission.chunk_of(12).index(12) == 1
    ids = [chunk.job_id for chunk in submission.chunks]
    assert elements(submission) == sorted(
        f"{job}_{n}" for job, count in zip(ids, (11, 11, 3), strict=True) for n in range(count)
    )
    assert len(set(families(submission))) == 25
    assert [task.task for task in submission.tasks()] == list(range(25))
    assert submission.prepare is None
    throttles = [cluster.ask("squeue", "--noheader", f"--jobs={job}", "--format=%K").split("%")[1] for job in ids]
    assert sum(map(int, throttles)) <= 5
    (collector,) = commands.queued([submission.collector.name])
    assert (collector.job_id, collector.reason) == (submission.collector.job_id, "Dependency")
    assert Path(submission.code, "sweep", "cli.py").exists()
    assert f"job {ids[0]}: 11 elements of 30m, 1 worker each" in out
    written = [path.read_text() for path in submission.folder.parent.rglob("*") if path.is_file()]
    assert not any(key in text for text in written)


def test_again_submits_only_what_is_neither_done_nor_in_the_queue(launch_held):
    launch_held("seed=0,1")
    status, out, _ = launch_held("seed=0,1")
    assert (status, len(there())) == (0, 1)
    assert out.count("in the queue already, left alone") == 2
    launch_held("seed=0,1,2", options=["--extend"])
    first, second = there()
    assert len(families(second)) == 1
    assert len(elements(first, second)) == 3
    commands.cancel([f"{first.chunks[0].job_id}_0"])
    wait_until(lambda: len(elements(first, second)) == 2)
    launch_held("seed=0,1,2")
    third = there()[2]
    assert families(third) == first.tasks()[0].families


def test_a_family_that_is_being_trained_is_left_alone(launch_held, workspace):
    launch_held("seed=0,1")
    (first,) = there()
    commands.cancel([str(first.chunks[0].job_id)])
    wait_until(lambda: not elements(first))
    name, other = families(first)
    held = claim.acquire(workspace / "runs" / "trunks" / name)
    try:
        status, out, _ = launch_held("seed=0,1")
    finally:
        held.release()
    assert status == 0
    assert f"being trained, left alone: {name}, host" in out
    assert families(there()[1]) == [other]


def program(folder, name, text):
    """A program that comes before Slurm's own on PATH; `$REAL` is Slurm's."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\nREAL={shutil.which(name)}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{path.parent}:{os.environ['PATH']}"}


def test_a_launch_killed_between_sbatch_and_noting_its_id(launch_held, overrides, workspace):
    killing = 'job=$("$REAL" "$@")\n[ $(ls $PWD/sweeps/held/slurm/001 | wc -l) -gt 0 ] && kill -9 $PPID\necho $job\n'
    environment = {**program(workspace, "sbatch", killing), "PYTHONPATH": str(ROOT)}
    typed = [sys.executable, "-m", "sweep", "launch", *overrides, *HELD, "seed=range(12)"]
    ended = subprocess.run(typed, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    (lost,) = there()
    assert [chunk.job_id for chunk in lost.chunks] == [None, None]
    assert len(elements(lost)) == 11  # Slurm has the first array all the same
    status, _, err = launch_held("seed=range(12)")
    assert status == 0
    assert f"{lost.chunks[0].name}: its launch ended before it could note the id" in err
    first, second = there()
    assert first.chunks[0].job_id is not None
    assert (len(elements(first)), len(elements(second))) == (11, 1)
    assert sorted(families(first)[:11] + families(second)) == sorted(families(first))


def test_a_launch_killed_before_its_folder_was_complete(launch_held):
    unfinished = Path("sweeps/held/slurm/001")
    (unfinished / "logs").mkdir(parents=True)
    (unfinished / "array-0.sbatch").write_text("#!/bin/bash\n")
    assert launch_held("seed=0")[0] == 0
    assert [one.folder.name for one in there()] == ["001"]


def test_an_element_that_is_ending_is_waited_for(launch_held, monkeypatch):
    """Cancelled a moment ago, it is still in the queue; taken for one that trains, its families would be nobody's."""
    launch_held("seed=0,1")
    (first,) = there()
    ask, ending = commands.queued, commands.queued([first.chunks[0].name])[:1]
    commands.cancel([ending[0].element])
    answers = [[replace(ending[0], state="COMPLETING")]] * 2

    def queued(names, **patience):
        return ask(names, **patience) + (answers.pop() if answers else [])

    monkeypatch.setattr(commands, "queued", queued)
    status, _, _ = launch_held("seed=0,1")
    assert (status, answers) == (0, [])
    assert families(there()[1]) == first.tasks()[ending[0].index].families


def test_two_launches_at_once_submit_once(launch_held, overrides, workspace):
    typed = [sys.executable, "-m", "sweep", "launch", *overrides, *HELD, "seed=0,1,2"]
    both = [
        subprocess.Popen(typed, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) in ([0, 0], [0, 2]), said
    assert len(elements(*there())) == 3
    assert len(there()) == 1


def test_the_second_launch_says_who_submits(launch_held, workspace):
    sweep = SweepDir(Path("sweeps/held").absolute())
    with exclusive(sweep):
        status, _, err = launch_held("seed=0")
    assert status == 2
    assert f"another launch is submitting this sweep (host {claim.Holder.here().host}, process {os.getpid()}" in err
    assert launch_held("seed=0")[0] == 0


def test_a_launch_that_was_killed_holds_nobody_up(launch_held, workspace):
    code = "import os, sys; from slurm.submission import *; from pathlib import Path\n"
    code += "with exclusive(SweepDir(Path('sweeps/held').absolute())): os.kill(os.getpid(), 9)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert launch_held("seed=0")[0] == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.slurm.partition=nope", "Invalid partition name specified"),
        ("cluster.slurm.account=nope", "Invalid account or account/partition combination specified"),
        ("cluster.slurm.qos=nope", "Invalid qos specification"),
        ("cluster.slurm.constraint=nope", "Invalid feature specification"),
        ("cluster.slurm.cpus=1000", "More processors requested than permitted"),
        ("cluster.slurm.max_array_size=5000", "Invalid job array specification"),
        ("cluster.slurm.time_buckets=[50d]", "Requested time limit is invalid"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words_and_leaves_nothing(launch_held, override, said):
    status, _, err = launch_held("seed=range(25)", override)
    (line,) = err.splitlines()
    assert status == 2
    assert said in line
    assert line.endswith("nothing was submitted")
    assert there() == []
    assert not list(Path("sweeps").glob("*/*.json*"))  # the name is free for another grid
    assert commands.count_of_user() == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.slurm.max_device_hours=0.1", "cluster.slurm.max_device_hours=0.1: this launch needs about 4.17"),
        (
            "cluster.slurm.max_dollars=1",
            "cluster.slurm.max_dollars=1: this launch needs about 4.17 device-hours, $10.4",
        ),
        ("cluster.slurm.time_buckets=[5m]", "does not fit 5m, the longest of cluster.slurm.time_buckets"),
        ("cluster.slurm.paths_are_shared=false", "paths.runs="),
        ("run.device=cuda", "run.device=cuda: cluster.slurm.gpus=0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_submitted(launch_held, override, said):
    status, _, err = launch_held("seed=range(25)", override)
    assert (status, len(err.splitlines())) == (2, 1)
    assert said in err
    assert there() == []
    assert commands.count_of_user() == 0


def test_a_refusal_half_way_says_what_is_in_the_queue_and_how_to_go_on(launch_held, workspace, monkeypatch):
    refusing = (
        'case "$*" in *array-1*) echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1;; esac\nexec "$REAL" "$@"\n'
    )
    with monkeypatch.context() as patched:
        patched.setenv("PATH", program(workspace, "sbatch", refusing)["PATH"])
        status, _, err = launch_held("seed=range(12)")
    assert status == 2
    (submission,) = there()
    job = submission.chunks[0].job_id
    assert err.strip().endswith(
        f"AssocMaxSubmitJobLimit; 1 of 2 arrays are in the queue (job {job}) and go on; "
        "launch again to submit the rest, or end them: python -m sweep cancel held"
    )
    assert launch_held("seed=range(12)")[0] == 0
    first, second = there()
    assert sorted(families(first)[:11] + families(second)) == sorted(families(first))
    assert len(elements(first, second)) == 12


def test_no_more_than_the_queue_may_hold(launch_held):
    buckets = "cluster.slurm.time_buckets=[30m,1h]"  # an hour holds three families
    status, _, _ = launch_held("seed=range(12)", "cluster.slurm.max_submitted=5", buckets)
    assert status == 0
    (submission,) = there()
    assert len(elements(submission)) == 4
    assert commands.count_of_user() == 5  # with the collector
    assert len(families(submission)) == 12
    status, _, err = launch_held("seed=range(14)", "cluster.slurm.max_submitted=5", buckets, options=["--extend"])
    assert status == 2
    assert "5 jobs of yours are in the queue" in err


def test_what_finds_no_room_is_said(launch_held):
    _, out, _ = launch_held("seed=range(12)", "cluster.slurm.max_submitted=5", "cluster.slurm.time_buckets=[30m]")
    assert "8 families do not fit cluster.slurm.max_submitted" in out
    assert len(families(there()[0])) == 4


def test_data_that_is_not_there_is_prepared_by_a_job_that_the_arrays_wait_for(launch_held):
    status, _, _ = launch_held("seed=0,1", "paths.tokens=tokens")
    assert status == 0
    (submission,) = there()
    assert submission.unprepared
    assert [job.reason for job in commands.queued([submission.chunks[0].name])] == ["JobHeldUser"] * 2
    shown = queue_dependency(submission.chunks[0].job_id)
    assert shown == f"afterok:{submission.prepare.job_id}(unfulfilled)"
    assert not Path("tokens").exists() or not list(Path("tokens").glob("*/meta.json"))
    launch_held("seed=0,1", "paths.tokens=tokens")
    assert len(there()) == 1


def queue_dependency(job_id):
    show = subprocess.run(["squeue", "-h", "-j", f"{job_id}_0", "-o", "%E"], capture_output=True, text=True, check=True)
    return show.stdout.strip()


def test_a_dry_run_shows_scripts_and_price_and_needs_no_slurm(launch_held, monkeypatch, workspace):
    monkeypatch.setenv("PATH", "/bin-without-slurm")
    status, out, err = launch_held("seed=range(3)", options=["--dry-run"])
    assert status == 0, err
    assert "#SBATCH --array=0-2" in out
    assert "price $" in out
    assert "submission 001: 3 families in 3 array elements" in out
    assert not list(workspace.rglob("*.sbatch"))
    assert not list(workspace.rglob("code"))
    assert err == ""
    status, _, err = launch_held("seed=range(3)", "cluster.slurm.paths_are_shared=false", options=["--dry-run"])
    assert status == 0
    assert err.startswith("a launch would be refused: paths.runs=")
    assert not Path("runs").exists()


def test_without_slurm_it_is_one_line(launch_held, monkeypatch):
    monkeypatch.setenv("PATH", "/bin-without-slurm")
    status, _, err = launch_held("seed=0")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "sbatch is not on PATH" in err


def test_the_collector_waits_for_arrays_and_collectors_of_earlier_submissions_too(launch_held):
    launch_held("seed=0")
    launch_held("seed=0,1", options=["--extend"])
    first, second = there()
    show = subprocess.run(
        ["squeue", "-h", "-j", str(second.collector.job_id), "-o", "%E"], capture_output=True, text=True, check=True
    )
    for job in (*first.chunks, first.collector, *second.chunks):
        assert f"afterany:{job.job_id}" in show.stdout


def test_a_collector_that_was_never_submitted_is_by_the_next_launch(launch_held, workspace, monkeypatch):
    refusing = (
        'case "$*" in *collector.sbatch*) echo "sbatch: error: QOSMaxSubmit" >&2; exit 1;; esac\nexec "$REAL" "$@"\n'
    )
    with monkeypatch.context() as patched:
        patched.setenv("PATH", program(workspace, "sbatch", refusing)["PATH"])
        status, _, err = launch_held("seed=0,1")
    assert status == 2
    assert "QOSMaxSubmit; the arrays are in the queue and go on" in err
    assert launch_held("seed=0,1")[0] == 0
    first, second = there()
    assert (second.chunks, len(elements(first))) == ([], 2)
    (collector,) = commands.queued([second.collector.name])
    assert collector.reason == "Dependency"
    launch_held("seed=0,1")
    assert len(there()) == 2


def test_settings_hold_absolute_paths(launch_held, workspace):
    launch_held("seed=0")
    settings = json.loads((workspace / "sweeps" / "held" / "sweep.json").read_text())
    assert settings["paths"]["runs"] == str(workspace / "runs")


def test_jobs_are_submitted_by_names_that_no_other_has(launch_held):
    launch_held("seed=0")
    launch_held("seed=0,1", options=["--extend"])
    names = [name for submission in there() for name in submission.names()]
    assert len(set(names)) == len(names) == 4
