"""Everybody who decides by how a trial stands is asked about the same folder in every state, and they agree.

Each case makes the state of the first family's long trial; the second family is as nobody left it.
"""

import contextlib
from dataclasses import replace
from functools import partial

import pytest

from slurm import commands
from slurm.pending import missing
from slurm.queue_state import ask
from slurm.submission import submissions
from sweep.cli import main
from sweep.common.exits import EXIT_AGAIN, EXIT_DONE
from sweep.runs import launches
from sweep.runs.claim import STALE_SECONDS, Holder
from sweep.runs.collect import collect
from sweep.runs.rundir import RunDir
from sweep.runs.state import KINDS, WITH_RECORD
from sweep.verbs import launch
from sweep.verbs.status import look
from sweep.verbs.work import _leave_to_others
from sweep.workers.local import held_elsewhere
from sweep.workers.progress_table import ProgressTable
from tests.helpers import tiny
from tests.helpers.made_up import answer, element, elsewhere, end, family_of, hold, record, start, submission


class Case:
    """A planned sweep of two families of two trials, and what is made to have happened to it."""

    def __init__(self, plan, sweep, slurm):
        self.plan, self.sweep, self.slurm = plan, sweep, slurm
        self.short, self.long, self.trunk = family_of(plan)

    def finished(self):
        record(self.plan, self.long)

    def diverged(self):
        record(self.plan, self.long, "diverged")

    def damaged(self):
        record(self.plan, self.long)
        RunDir.of_trial(self.plan.runs, self.long.trial_id).record.write_text('{"status": "finished"}')

    def running(self):
        start(self.trunk)
        hold(self.trunk, Holder.here(), trial_id=self.long.trial_id, step=3)

    def running_in_a_job(self):
        submission(self.plan, self.sweep, age=900)
        start(self.trunk, job=elsewhere().job)
        hold(self.trunk, elsewhere(), trial_id=self.long.trial_id, step=3)
        self.slurm(element("RUNNING"))

    def waiting_in_its_family(self):
        start(self.trunk, trials=[self.short.trial_id, self.long.trial_id])
        hold(self.trunk, Holder.here(), trial_id=self.short.trial_id, step=3)

    def waiting_in_its_job(self):
        submission(self.plan, self.sweep)
        self.slurm(element("RUNNING"))

    def waiting_in_its_launch(self):
        return launches.announced(self.sweep.path)

    def queued(self):
        submission(self.plan, self.sweep)
        self.slurm(element())

    def stalled(self):
        start(self.trunk)
        hold(self.trunk, replace(Holder.here(), host="n9"), age=2 * STALE_SECONDS, trial_id=self.long.trial_id, step=3)

    def failed(self):
        start(self.trunk)
        end(self.trunk, "failed", error="RuntimeError: bad")

    def given_up(self):
        start(self.trunk)
        end(self.trunk, "given up", error="given up after 3 attempts")

    def lost(self):
        start(self.trunk)

    def lost_with_its_job(self):
        """Its node died: the claim was never released."""
        self.running_in_a_job()
        hold(self.trunk, elsewhere(), number=2, age=2 * STALE_SECONDS, trial_id=self.long.trial_id, step=3)
        self.slurm(ended={(7, 0): commands.Ended("NODE_FAIL", 0, 300, "n1")})

    def missing(self):
        pass

    def missing_because_stopped(self):
        start(self.trunk)
        end(self.trunk, "stopped")

    def missing_because_others_train_less(self):
        start(self.trunk, trials=[self.short.trial_id])
        hold(self.trunk, Holder.here(), trial_id=self.short.trial_id, step=3)


# case → (kind; what a launch on Slurm does with the family; whether a claim on it counts)
CASES = {
    "finished": ("finished", "train the other", False),
    "diverged": ("diverged", "train the other", False),
    "damaged": ("damaged", "train the other", False),
    "running": ("running", "held", True),
    "running_in_a_job": ("running", "queued", True),
    "waiting_in_its_family": ("waiting", "held", True),
    "waiting_in_its_job": ("waiting", "queued", False),
    "waiting_in_its_launch": ("waiting", "held", False),
    "queued": ("queued", "queued", False),
    "stalled": ("stalled", "held", True),
    "failed": ("failed", "train", False),
    "given_up": ("given up", "given up", False),
    "lost": ("lost", "train", False),
    "lost_with_its_job": ("lost", "train", False),
    "missing": ("missing", "train", False),
    "missing_because_stopped": ("missing", "train", False),
    "missing_because_others_train_less": ("missing", "held", True),
}


def test_every_kind_has_a_case():
    assert {kind for kind, _, _ in CASES.values()} == set(KINDS)
    assert set(CASES) == {name for name in vars(Case) if not name.startswith("_")}


@pytest.fixture(params=CASES)
def case(request, overrides, workspace, monkeypatch):
    """(case, kind, what a launch does, whether a claim counts)"""
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0,1"])
    slurm = partial(answer, monkeypatch)
    slurm()
    monkeypatch.setattr(commands, "cancel", lambda targets: None)
    monkeypatch.setattr(launch, "launch", lambda request: 0)
    case = Case(plan, sweep, slurm)
    during = getattr(case, request.param)()
    with during or contextlib.nullcontext():
        yield case, *CASES[request.param]


def test_what_is_shown(case):
    """By `status`, in the table, and while a launch is watched."""
    case, kind, _, _ = case
    trial_id = case.long.trial_id
    shown = {one.trial_id: one.state for one in look(case.sweep).trials}
    assert shown[trial_id] == kind
    table = collect(case.sweep, lambda: ask(case.sweep)).table
    assert dict(zip(table["trial_id"], table["status"], strict=True)) == shown
    progress = ProgressTable(case.plan)
    assert (trial_id in progress.done) == (kind in WITH_RECORD)
    assert (trial_id in {beat.trial_id for beat in progress.beats}) == (kind == "running")


def test_what_a_launch_trains(case):
    """The plan, a launch on this machine, and one on Slurm."""
    case, kind, does, is_held = case
    plan, family_id = case.plan, case.long.family_id
    left = {trial.trial_id for family in plan.left() for trial in family}
    assert (case.long.trial_id in left) == (kind not in WITH_RECORD)
    assert any(line.startswith(f"{family_id}: ") for line in held_elsewhere(plan, ask(case.sweep))) == is_held
    found = missing(plan, submissions(case.sweep))
    to_train = {trial.trial_id for family in found.families for trial in family}
    assert {
        "train": {case.short.trial_id, case.long.trial_id} <= to_train,
        "train the other": {case.short.trial_id, case.long.trial_id} & to_train == {case.short.trial_id},
        "held": family_id in found.held,
        "queued": family_id in found.queued,
        "given up": family_id in found.given_up,
    } == {**dict.fromkeys(("train", "train the other", "held", "queued", "given up"), False), does: True}


def test_what_an_element_leaves_to_others(case):
    """Once its own workers have ended: it comes back for what somebody who holds the family leaves out."""
    case, kind, _, is_held = case
    status = _leave_to_others(case.sweep, [case.long.family_id], EXIT_DONE)
    assert status == (EXIT_AGAIN if is_held and kind == "missing" else EXIT_DONE)


def test_what_is_cancelled_and_tried_again(case, capsys):
    case, kind, _, is_held = case
    assert main(["cancel", "small", case.long.trial_id]) == 0
    out, err = capsys.readouterr()
    assert ("has its record" in out) == (kind in WITH_RECORD)
    assert main(["retry", "small", case.long.trial_id]) == 0
    out, err = capsys.readouterr()
    assert ("is being trained, left alone" in err) == is_held
    assert ("nothing to retry" in out) == (is_held or kind in WITH_RECORD)
    if kind == "given up":
        assert look(case.sweep).counts() == {"missing": 4}
