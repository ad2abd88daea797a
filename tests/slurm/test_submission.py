"""What lies in a submission's folder reads as typed values, also what an earlier version has written."""

import json
import shutil
from pathlib import Path

import pytest

from slurm.submission import ArrayTask, Submission
from sweep.common.errors import UserError

EARLIER = Path(__file__).resolve().parents[1] / "golden" / "slurm" / "submission"


@pytest.fixture
def folder(tmp_path):
    """A submission of an earlier version, to be changed."""
    return Path(shutil.copytree(EARLIER, tmp_path / "001"))


def change(folder, **values):
    path = folder / "submission.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_submission_of_an_earlier_version_reads():
    """Its arrays have an `offset` too, its section a key that is gone, and its tasks have no points."""
    submission = Submission.read(EARLIER)
    assert (submission.folder, submission.number, submission.unprepared) == (EARLIER, 1, True)
    assert [chunk.tasks for chunk in submission.chunks] == [(0, 10), (11, 11)]
    assert [job.job_id for job in submission.jobs()] == [None, 1, None, 2]
    assert submission.chunk_of(11).index(11) == 0
    assert (submission.slurm.max_attempts_without_progress, submission.slurm.prepare.time) == (3, "8h")
    assert submission.slurm.environment == {"WANDB_API_KEY": None, "HF_HOME": "/shared/me/hf"}
    tasks = submission.tasks()
    assert [task.task for task in tasks] == list(range(12))
    assert tasks[0] == ArrayTask(0, "30m", ["3.09k-1x16-s3-05dac70a", "776-1x8-s3-73f1fe32"], 2, 0.5)
    assert tasks[11].points == ["model.width=8 budget.tokens=16k", "model.width=16 budget.tokens=16k"]


def test_what_is_written_reads_the_same(folder):
    submission = Submission.read(folder)
    tasks = submission.tasks()
    submission.chunks[1].job_id = 3
    submission.write()
    submission.write_tasks(tasks)
    assert Submission.read(folder) == submission
    assert submission.tasks() == tasks
    assert "folder" not in json.loads((folder / "submission.json").read_text())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"number": "1"}, "number='1': input should be a valid integer"),
        ({"chunks": [{"script": "array-0.sbatch"}]}, "chunks.0.name is missing"),
        ({"collector": {"name": "c", "script": "c.sbatch", "job_id": "2"}}, "collector.job_id='2': "),
        ({"slurm": {"cpus": 0}}, "cluster.slurm.cpus=0"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_field(folder, values, said):
    change(folder, **values)
    with pytest.raises(UserError) as caught:
        Submission.read(folder)
    assert str(caught.value).startswith(f"{folder / 'submission.json'}: damaged (")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_task_is_named_by_its_line(folder):
    path = folder / "tasks.jsonl"
    path.write_text(path.read_text().replace('"workers": 2', '"workers": "two"', 1))
    with pytest.raises(UserError, match=r"tasks\.jsonl:1: damaged \(workers='two'"):
        Submission.read(folder).tasks()
