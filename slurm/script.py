"""The text of the batch scripts. Each is a pure function of its inputs, for administrators to read.

`array` trains, `prepare` makes the data that the arrays wait for, `collector` reports when the arrays have ended.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from sweep.common.exits import EXIT_AGAIN
from sweep.common.units import parse_duration
from sweep.config.schema import SlurmJobSection, SlurmSection

HEAD = """\
#!/bin/bash -l
# {title}
# Written by `python -m sweep launch`; Slurm keeps its own copy, so edits here change nothing.
{directives}

sweep={sweep}
submission={submission}
runs={runs}
code={code}  # as it was at the launch; the checkout may change meanwhile

if [ ! -r "$submission/submission.json" ] || [ ! -w "$runs" ]; then
    echo "$(hostname): cannot read $submission or write $runs; paths.* must be folders that every node sees" >&2
    exit 1
fi
{setup}
export PYTHONPATH="$code${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
sweep_verb() {{
    {command} "$@"
}}
"""

MPS = """
# Small trials share a GPU: at the same time where this node has NVIDIA's MPS, in turns where it has not.
if command -v nvidia-cuda-mps-control >/dev/null; then
    mps=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$mps" CUDA_MPS_LOG_DIRECTORY="$mps"
    nvidia-cuda-mps-control -d && trap 'echo quit | nvidia-cuda-mps-control; rm -rf "$mps"' EXIT
fi
"""

ARRAY = """
trap : TERM  # Slurm sends it when our time ends; let the workers save first
cd "$code" || exit 1
sweep_verb work "$sweep" --submission {number} --task $((SLURM_ARRAY_TASK_ID + {offset}))
status=$?

# {again} means that everything is saved and there is more to do. If Slurm still has us running (our time is nearly up,
# or we are preempted), or our time was up, then put this element alone back into the queue. Otherwise somebody has
# cancelled it.
if [ $status -eq {again} ]; then
    element=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
    for wait in 1 2 4 8 16 32; do
        state=$(scontrol show job --oneliner "$element") && break
        sleep $wait
    done
    case $state in *JobState=RUNNING* | *Reason=TimeLimit*) scontrol requeue "$element" ;; esac
fi
exit $status
"""

PREPARE = """
cd {folder} || exit 1  # data files may be named relative to where the launch was typed
sweep_verb prepare --submission "$submission"
"""

COLLECTOR = """
cd "$code" || exit 1
sweep_verb collect "$sweep"
sweep_verb fit "$sweep"  # a refused fit is not a failure: the report shows the data and says why
sweep_verb report "$sweep"
"""


@dataclass(frozen=True)
class Place:
    """Where everything of a submission lies. All paths are absolute."""

    sweep: Path
    submission: Path
    runs: Path
    code: Path
    launched_from: Path
    python: str


@dataclass(frozen=True)
class ArrayJob:
    """Elements `first` to `last` of a submission, as one array."""

    name: str
    first: int
    last: int
    seconds: int
    memory_gib: int | float | None
    partition: str | None
    qos: str | None
    at_once: int | None  # how many elements may run at a time
    shares_gpus: bool  # it has elements with more workers than GPUs


def array(job: ArrayJob, place: Place, slurm: SlurmSection) -> str:
    """The script that trains elements. `tasks.jsonl` says what each element holds.

    Array indices start at 0, elements at `job.first`.
    """
    throttle = f"%{job.at_once}" if job.at_once else ""
    directives = [
        *_directives(place, job.name, "%A_%a", job.seconds, slurm.cpus, job.memory_gib),
        *_site(slurm, job.partition or slurm.partition, job.qos or slurm.qos),
        f"--array=0-{job.last - job.first}{throttle}",
        *([f"--gres={slurm.gres_name}:{slurm.gpus}"] if slurm.gpus else []),
        "--requeue",
        f"--signal=USR2@{slurm.signal_seconds}",
        *slurm.sbatch_lines,
    ]
    number = place.submission.name
    title = f"Sweep {place.sweep.name}, submission {number}: elements {job.first} to {job.last} of tasks.jsonl"
    body = ARRAY.format(number=number, offset=job.first, again=EXIT_AGAIN)
    return _head(title, directives, place, slurm, slurm.cpus) + (MPS if job.shares_gpus and slurm.mps else "") + body


def prepare(name: str, place: Place, slurm: SlurmSection) -> str:
    """The script that makes the missing token shards, and with them the trials' real ids. The arrays wait for it."""
    job = slurm.prepare
    title = f"Sweep {place.sweep.name}, submission {place.submission.name}: its data"
    directives = _beside(name, "prepare", job, place, slurm)
    body = PREPARE.format(folder=shlex.quote(str(place.launched_from)))
    return _head(title, directives, place, slurm, job.cpus) + body


def collector(name: str, place: Place, slurm: SlurmSection) -> str:
    """The script that collects, fits and reports when the arrays have ended, however they ended."""
    job = slurm.collector
    title = f"Sweep {place.sweep.name}, submission {place.submission.name}: collect, fit, report"
    directives = _beside(name, "collector", job, place, slurm)
    return _head(title, directives, place, slurm, job.cpus) + COLLECTOR


def _beside(name: str, kind: str, job: SlurmJobSection, place: Place, slurm: SlurmSection) -> list[str]:
    seconds = parse_duration(f"cluster.slurm.{kind}.time", job.time)
    return [
        *_directives(place, name, f"{kind}-%j", seconds, job.cpus, job.memory_gib),
        *_site(slurm, job.partition or slurm.partition, slurm.qos),
        "--requeue",
    ]


def _directives(place: Place, name: str, log: str, seconds: int, cpus: int, memory_gib: float | None) -> list[str]:
    return [
        f"--job-name={name}",
        f"--output={shlex.quote(str(place.submission / 'logs'))}/{log}.log",
        "--open-mode=append",
        f"--time={_clock(seconds)}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={cpus}",
        *([f"--mem={round(memory_gib * 1024)}M"] if memory_gib else []),
    ]


def _site(slurm: SlurmSection, partition: str | None, qos: str | None) -> list[str]:
    said = {"partition": partition, "account": slurm.account, "qos": qos, "constraint": slurm.constraint}
    return [f"--{option}={shlex.quote(value)}" for option, value in said.items() if value]


def _head(title: str, directives: list[str], place: Place, slurm: SlurmSection, cpus: int) -> str:
    given = {name: value for name, value in slurm.environment.items() if value is not None}
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in given.items()]
    setup = "".join(f"{line}\n" for line in [*lines, *slurm.setup])
    return HEAD.format(
        title=title,
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        sweep=shlex.quote(str(place.sweep)),
        submission=shlex.quote(str(place.submission)),
        runs=shlex.quote(str(place.runs)),
        code=shlex.quote(str(place.code)),
        setup=f"\n{setup}" if setup else "",
        command=_command(place, slurm, cpus),
    )


def _command(place: Place, slurm: SlurmSection, cpus: int) -> str:
    """`srun … python -m sweep`. Since Slurm 22.05 srun no longer takes the number of cores from sbatch."""
    srun = ["srun", "--ntasks=1", f"--cpus-per-task={cpus}", "--export=ALL", *slurm.srun_arguments]
    return shlex.join([*srun, *slurm.command_prefix, place.python, "-m", "sweep"])


def _clock(seconds: int) -> str:
    """Seconds as Slurm writes time limits: 08:00:00, 1-12:00:00."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
