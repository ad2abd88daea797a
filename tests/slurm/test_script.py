"""The scripts as an administrator reads them (`tests/golden/slurm/`), and what a shell does with them.

After a change that is meant: `python tests/slurm/test_script.py` writes the golden files anew; read the difference.
"""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from slurm import script
from slurm.script import ArrayJob, Place
from sweep.config.schema import SlurmSection

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "slurm"
PLACE = Place(
    sweep=Path("/shared/me/sweeps/ladder"),
    submission=Path("/shared/me/sweeps/ladder/slurm/002"),
    runs=Path("/shared/me/runs"),
    code=Path("/shared/me/sweeps/ladder/code/1f2e3d4c5b6a"),
    launched_from=Path("/home/me/scaling"),
    python="/home/me/scaling/.venv/bin/python",
)
GPU = SlurmSection(
    partition="gpu",
    account="project_42",
    constraint="h100&nvlink",
    gres_name="gpu:h100",
    sbatch_lines=["--mail-type=FAIL", "--exclude=node[13-14]"],
    setup=["module load cuda/12.4", 'echo "on $(hostname)"'],
    environment={"HF_HOME": "/shared/me/hf cache", "WANDB_API_KEY": None},
    srun_arguments=["--container-image=/shared/me/torch.sqsh", "--container-mounts=/shared:/shared"],
)
CPU = SlurmSection(gpus=0, cpus=4, command_prefix=["apptainer", "exec", "/shared/my images/torch.sif"])
ARRAY = ArrayJob("ladder.002.1-0a1b2c3d", 1001, 1500, 30 * 3600, 64, "long", None, 16, shares_gpus=False)
SMALL = ArrayJob("ladder.002.0-0a1b2c3d", 0, 3, 1800, None, None, None, None, shares_gpus=True)


def texts():
    return {
        "array.sbatch": script.array(ARRAY, PLACE, GPU),
        "array-cpu.sbatch": script.array(SMALL, PLACE, CPU),
        "array-shared-gpu.sbatch": script.array(SMALL, PLACE, SlurmSection()),
        "prepare.sbatch": script.prepare("ladder.002.prepare-0a1b2c3d", PLACE, GPU),
        "collector.sbatch": script.collector("ladder.002.collector-0a1b2c3d", PLACE, CPU),
    }


@pytest.mark.parametrize("name", texts())
def test_scripts_are_as_in_their_golden_files(name):
    assert texts()[name] == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", texts())
def test_a_shell_can_read_them(name):
    subprocess.run(["bash", "-n"], input=texts()[name], text=True, check=True)


def test_no_secret_and_nothing_of_the_shell_that_launches(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "do-not-write-me")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for text in texts().values():
        assert "do-not-write-me" not in text
        assert "WANDB" not in text
        assert "4711" not in text


@pytest.fixture
def node(tmp_path):
    """A node in a folder: stand-ins for Slurm's programs write down how they were called. `run(status, state)`."""
    place = Place(
        *(tmp_path / name for name in ("my sweep", "my sweep/slurm/001", "runs", "code", "home")), python="python"
    )
    for folder in (place.submission, place.runs, place.code, place.launched_from):
        folder.mkdir(parents=True)
    (place.submission / "submission.json").write_text("{}")
    calls = tmp_path / "calls"

    def program(name, does):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "{name} $* in $PWD with $PYTHONPATH" >> {calls}\n{does}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(text, status=0, state="RUNNING"):
        program("srun", f"exit {status}")
        program("scontrol", f'[ "$1" = show ] && echo "JobId=9 JobState={state} Dependency=(null)"\nexit 0')
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        # Without -l: what this machine's profile does to PATH is none of the script's.
        ended = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
        return ended, calls.read_text().splitlines() if calls.exists() else []

    run.place = place
    return run


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (75, "COMPLETING Reason=TimeLimit", True),
        (137, "RUNNING", False),
    ],
)
def test_an_element_that_says_again_is_requeued_alone_unless_slurm_decided_otherwise(node, status, state, requeued):
    text = script.array(ArrayJob("n", 10, 19, 60, None, None, None, None, False), node.place, CPU)
    ended, calls = node(text, status, state)
    assert ended.returncode == status, ended.stderr
    assert f"-m sweep work {node.place.sweep} --submission 001 --task 13 " in calls[0]
    assert f"in {node.place.code} with {node.place.code}" in calls[0]
    assert any(call.startswith("scontrol requeue 7_3 ") for call in calls) == requeued


def test_a_node_that_does_not_see_the_folders_says_which(node):
    text = script.array(SMALL, node.place, CPU)
    (node.place.submission / "submission.json").unlink()
    ended, calls = node(text)
    assert (ended.returncode, calls) == (1, [])
    (line,) = ended.stderr.splitlines()
    assert f"cannot read {node.place.submission}" in line


def test_the_collector_ends_as_the_report_does(node):
    ended, calls = node(script.collector("n", node.place, CPU))
    assert ended.returncode == 0
    assert [call.split(" -m sweep ")[1].split()[0] for call in calls] == ["collect", "fit", "report"]
    assert node(script.collector("n", node.place, CPU), status=2)[0].returncode == 2


def test_data_is_prepared_where_the_launch_was_typed(node):
    _, calls = node(script.prepare("n", node.place, CPU))
    assert f"-m sweep prepare --submission {node.place.submission} in {node.place.launched_from} " in calls[0]


if __name__ == "__main__":
    for name, text in texts().items():
        (GOLDEN / name).write_text(text)
