"""Running on a real Slurm: status, logs, cancel and retry while it trains, dies and comes back."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from slurm import commands
from slurm.submission import submissions
from sweep.cli import main
from sweep.runs import claim
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny
from tests.helpers.slurm_cluster import clear, release, wait_until

CLUSTER = [
    "cluster=slurm",
    "cluster.device_name=null",
    "cluster.device_memory_gib=null",
    "cluster.seconds_per_step=0.4",  # so that an element of half an hour holds one family of STEPS steps
    "cluster.slurm.gpus=0",
    "cluster.slurm.cpus=1",
    "cluster.slurm.memory_gib=null",
    "cluster.slurm.paths_are_shared=true",
    "eval.log_every_steps=500",
    "sweep.name=tried",
]
STEPS = 2500
LONG = tiny.steps(STEPS)  # some seconds


def place(cluster, overrides, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    clear(cluster)

    def typed(verb, *arguments):
        """(exit status, stdout, stderr) of a verb, as typed on the cluster."""
        if verb == "launch":
            arguments = ("--no-report", *overrides, *CLUSTER, *arguments)
        status = main([verb, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return typed


@pytest.fixture
def verb(cluster, overrides, workspace, monkeypatch, capsys):
    yield place(cluster, overrides, monkeypatch, capsys)
    clear(cluster)


@pytest.fixture
def verb_without_accounting(cluster_without_accounting, overrides, workspace, monkeypatch, capsys):
    yield place(cluster_without_accounting, overrides, monkeypatch, capsys)
    clear(cluster_without_accounting)


def planned(overrides, *more):
    """The same trials, to be trained here."""
    return plan_here([*overrides, *CLUSTER, *more])


def standing(verb):
    """Trial id → what `status --json` says of it."""
    status, out, err = verb("status", "tried", "--json")
    assert status == 0, err
    return {trial["trial_id"]: trial for trial in json.loads(out)["trials"]}


def states(verb):
    return sorted(trial["state"] for trial in standing(verb).values())


def attempts_of(trial):
    """[(start row, end row or None), …] of a trial's family."""
    rows = tiny.lines(RunDir.of_trunk(Path("runs"), trial.family_id).attempts)
    ends = {row["attempt"]: row for row in rows if row["event"] == "end"}
    return [(row, ends.get(row["attempt"])) for row in rows if row["event"] == "start"]


def assert_as_if_alone(plan, trial, folder):
    """Bit-equal to a local run; no two attempts at a time."""
    assert tiny.train(replace(plan, trials=[trial]), folder / "alone") == 0
    assert tiny.everything("runs", trial.trial_id) == tiny.everything(folder / "alone", trial.trial_id)
    ended = [(start["time"], end["time"]) for start, end in attempts_of(trial) if end]
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(ended))


def test_a_run_is_cancelled_and_tried_again_while_the_other_goes_on(verb, cluster, overrides, workspace):
    plan = planned(overrides, LONG, "seed=0,1")
    status, _, err = verb("launch", LONG, "seed=0,1")
    assert status == 0, err
    mine, other = plan.trials
    wait_until(lambda: standing(verb)[mine.trial_id]["state"] == "running", 120, cluster)
    told = standing(verb)[mine.trial_id]
    assert told["where"].split()[0] in ("n1", "n2")
    assert told["steps"] == STEPS

    status, out, _ = verb("cancel", "tried", mine.trial_id)
    assert status == 0
    assert out.startswith("cancelled element ")
    wait_until(lambda: standing(verb)[mine.trial_id]["state"] != "running", cluster=cluster)
    ((_, end),) = attempts_of(mine)
    assert end is None or end["outcome"] == "stopped"  # a busy machine may not save within this cluster's KillWait
    state = "missing" if end else "lost"
    wait_until(lambda: standing(verb)[mine.trial_id]["state"] == state, cluster=cluster)
    assert ("saved" if end else "exited without reporting a result") in standing(verb)[mine.trial_id]["note"]

    cluster.stop("slurmctld")
    try:
        status, out, _ = verb("status", "tried")
        assert status == 0
        assert end is None or "1 missing" in out  # a killed one cannot be told from a silent one now
        assert "what follows is from the run folders alone" in out
        status, _, err = verb("cancel", "tried")
        assert status == 2
        assert "were not cancelled: Slurm does not answer" in err
    finally:
        cluster.start("slurmctld")

    status, out, err = verb("retry", "tried", mine.trial_id)
    assert status == 0, err
    second = submissions(SweepDir(Path("sweeps/tried")))[1]
    assert [task.families for task in second.tasks()] == [[mine.family_id]]  # and no second copy of what runs
    wait_until(lambda: states(verb) == ["finished"] * 2, 180, cluster)
    assert_as_if_alone(plan, mine, workspace)
    (first, _), (again, end) = attempts_of(mine)
    assert first["job"]["id"] != again["job"]["id"]
    assert end["outcome"] == "done"
    assert len(attempts_of(other)) == 1
    _, out, _ = verb("logs", mine.trial_id, "--all")
    assert out.count(f"{mine.trial_id}: begins") == 2  # in the logs of both elements, in order
    assert out.index(first["log"]) < out.index(again["log"])
    wait_until(
        lambda: (
            not commands.queued(name for made in submissions(SweepDir(Path("sweeps/tried"))) for name in made.names())
        )
    )
    status, out, _ = verb("cancel", "tried")
    assert (status, "nothing to cancel" in out) == (0, True)


def test_a_run_whose_node_dies_goes_on_elsewhere_once_its_claim_is_silent(
    verb_without_accounting, cluster_without_accounting, overrides, workspace
):
    """Its process is gone without a word, on a host that cannot be looked at; there is no sacct either."""
    verb, cluster = verb_without_accounting, cluster_without_accounting
    checkpoints = "run.checkpoint_seconds=1"
    plan = planned(overrides, LONG, checkpoints)
    (trial,) = plan.trials
    trunk = RunDir.of_trunk(Path("runs"), trial.family_id)
    assert verb("launch", LONG, checkpoints)[0] == 0
    wait_until(lambda: trunk.stable_steps(), cluster=cluster)
    holder = claim.current_holder(trunk.path)
    assert holder.is_gone() is None  # its host is not this one
    assert claim.held_by(trunk.path) is not None
    node, element = holder.job.node, holder.job.id
    cluster.crash(node)
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        wait_until(lambda: standing(verb)[trial.trial_id]["state"] in ("queued", "waiting", "running"), cluster=cluster)
        release(cluster, element)
        wait_until(lambda: states(verb) == ["finished"], 180, cluster)
    finally:
        cluster.start(node)
    (first, killed), (again, end) = attempts_of(trial)
    assert killed is None
    assert (end["outcome"], again["job"]["id"], again["job"]["restart"]) == ("done", element, 1)
    assert again["job"]["node"] != node
    assert again["saved_state"]["trunk_steps"] > [0]
    assert again["time"] - first["time"] > claim.SILENT_SECONDS
    assert_as_if_alone(plan, trial, workspace)
    _, out, _ = verb("logs", trial.trial_id)
    assert f"on {node}, job {element} (restart 0), no end" in out
    assert f"job {element} (restart 1), done after" in out


def test_what_fails_again_and_again_is_given_up_until_a_person_says_retry(verb, cluster, overrides, workspace):
    """Its folder holds another trial: every attempt fails from the same saved state."""
    more = (tiny.steps(40), "cluster.slurm.max_attempts_without_progress=1")
    plan = planned(overrides, *more)
    (trial,) = plan.trials
    (another,) = planned(overrides, tiny.steps(41)).trials
    wrong = RunDir.of_trial(Path("runs"), trial.trial_id).trial
    another.keep(wrong)
    for outcome in ("failed", "given up"):
        status, _, err = verb("launch", *more)
        assert status == 0, err
        wait_until(lambda outcome=outcome: states(verb) == [outcome], 120, cluster)
        name = submissions(SweepDir(Path("sweeps/tried")))[-1].chunks[0].name
        wait_until(lambda name=name: not commands.queued([name]), cluster=cluster)
        assert attempts_of(trial)[-1][1]["outcome"] == outcome
        element = attempts_of(trial)[-1][0]["job"]["id"]
        asked = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={element}", "--format=State,ExitCode")
        # Accounting hears of an end a moment after the queue.
        wait_until(lambda asked=asked: cluster.ask(*asked).strip() == "FAILED|1:0", cluster=cluster)
    note = standing(verb)[trial.trial_id]["note"]
    assert note.startswith("given up after 1 attempts without progress (the last: ")
    assert "holds another trial than its folder's name says" in note
    status, out, _ = verb("launch", *more)
    assert status == 1
    assert "1 families were given up after attempts without progress" in out
    assert len(submissions(SweepDir(Path("sweeps/tried")))) == 2

    wrong.unlink()
    status, out, err = verb("retry", "tried")
    assert status == 0, err
    wait_until(lambda: states(verb) == ["finished"], 120, cluster)
    assert_as_if_alone(plan, trial, workspace)
