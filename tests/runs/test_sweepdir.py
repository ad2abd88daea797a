"""What a sweep's folder holds is read as typed values, also where an older version wrote it."""

import json

import pytest

from sweep.common.errors import UserError
from sweep.runs.settings import Excluded
from sweep.runs.sweepdir import SweepDir
from tests.helpers.facts import facts_of

OLD_SETTINGS = {  # as the first versions wrote them: without overrides, and with fewer keys in each section
    "name": "old",
    "command": ["python", "-m", "sweep", "launch", "data=markov", "--extend"],
    "device": "cpu",
    "run": {"device": "cpu", "backend": "auto", "threads": 2, "checkpoint_seconds": float("inf")},
    "cluster": {"name": "local", "scheduler": "local", "dollars_per_device_hour": 1},
    "paths": {"runs": "runs", "sweeps": "sweeps", "tokens": "tokens"},
    "excluded": [{"overrides": ["seed=1"], "condition": "epochs <= 1", "facts": "epochs = 2"}],
}
FACTS = vars(facts_of("776-1x8-16ktok-s0-0123abcd", "776-1x8-s0-4567cdef"))


@pytest.fixture
def sweep(tmp_path):
    folder = SweepDir(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(OLD_SETTINGS))
    folder.plan.write_text(json.dumps({"schema_version": 1, "facts": FACTS, "config": {"not": "read"}}) + "\n")
    return folder


def test_settings_of_an_older_version_are_read(sweep):
    settings = sweep.settings()
    assert (settings.run.threads, settings.run.checkpoint_seconds) == (2, float("inf"))
    assert settings.cluster.dollars_per_device_hour == 1.0
    assert settings.cluster.slurm.max_attempts_without_progress > 0
    assert settings.excluded == [Excluded(["seed=1"], "epochs <= 1", "epochs = 2")]
    assert sweep.overrides() == ["data=markov"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paths": {"runs": 3}}, "paths.runs=3: input should be a valid string"),
        ({"run": {"threads": 0}}, "run.threads=0: must be at least 1"),
        ({"excluded": [{"overrides": []}]}, "excluded.0.condition is missing"),
    ],
)
def test_damaged_settings_are_one_line_with_the_field(sweep, change, said):
    (sweep.path / "sweep.json").write_text(json.dumps(OLD_SETTINGS | change))
    with pytest.raises(UserError) as error:
        sweep.settings()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_facts_of_planned_trials_are_read_without_the_rest_of_the_line(sweep):
    (facts,) = sweep.planned()
    assert vars(facts) == FACTS
    assert sweep.chosen(["776-1x8-16k"]) == sweep.chosen([FACTS["family_id"]]) == [facts]


def test_a_plan_that_was_cut_is_an_error_and_not_a_shorter_plan(sweep):
    sweep.plan.write_text(sweep.plan.read_text() + '{"facts"')
    with pytest.raises(UserError, match=r"plan\.jsonl:2: damaged \(invalid JSON.*\); remove it and launch again"):
        sweep.planned()
