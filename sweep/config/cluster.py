"""Where a sweep runs: this machine, or a Slurm cluster, and what a device-hour costs there.

Everything that a site needs is a key here, so that a first launch on a cluster is one file to edit,
`conf/cluster/slurm.yaml`, which explains each key.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from sweep.common.errors import UserError
from sweep.common.units import parse_duration
from sweep.common.validate import at_least, one_of, positive, word_or_count

SCHEDULERS = ("local", "slurm")
LONG_FAMILIES = ("refuse", "requeue")
BUCKET_KEYS = ("time", "partition", "qos")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


@dataclass
class SlurmJobSection:
    """What a job beside the arrays asks for; `partition: null` is that of the arrays."""

    partition: str | None = None
    cpus: int = 2
    memory_gib: float | None = None
    time: str = "1h"


@dataclass
class SlurmSection:
    """How arrays are asked for. Times are text with units, such as 30m or 1d12h."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 1
    gres_name: str = "gpu"
    cpus: int = 8
    memory_gib: Any = "auto"
    workers: Any = "auto"
    mps: bool = True
    time_buckets: list[Any] = field(default_factory=lambda: ["30m", "2h", "8h", "24h"])
    time_margin: float = 1.5
    long_families: str = "refuse"
    signal_seconds: int = 120
    max_running: int | None = None
    max_submitted: int | None = None
    max_array_size: int | None = None
    max_device_hours: float | None = None
    max_dollars: float | None = None
    max_attempts_without_progress: int = 3
    sbatch_lines: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    srun_arguments: list[str] = field(default_factory=list)
    command_prefix: list[str] = field(default_factory=list)
    python: str | None = None
    paths_are_shared: bool = False
    prepare: SlurmJobSection = field(default_factory=lambda: SlurmJobSection(cpus=8, time="8h"))
    collector: SlurmJobSection = field(default_factory=SlurmJobSection)

    def __post_init__(self) -> None:
        self._check_numbers()
        for key in ("prepare", "collector"):
            job = getattr(self, key)
            at_least(f"cluster.slurm.{key}.cpus", job.cpus, 1)
            parse_duration(f"cluster.slurm.{key}.time", job.time)
        for name, value in self.environment.items():
            _check_variable(name, value)
        for key in ("sbatch_lines", "setup"):
            for line in getattr(self, key):
                if "\n" in line:
                    raise UserError(f"cluster.slurm.{key}: {line!r} is more than one line; give a list of lines")
        for line in self.setup:
            for name in re.findall(r"(\w+)=\S", line):
                _check_variable(name, line)
        for line in self.sbatch_lines:
            if not line.startswith("-"):
                raise UserError(f"cluster.slurm.sbatch_lines: {line!r}: give options of sbatch, such as --exclusive")
        buckets(self)

    def _check_numbers(self) -> None:
        for key in ("cpus", "signal_seconds", "max_attempts_without_progress"):
            at_least(f"cluster.slurm.{key}", getattr(self, key), 1)
        for key in ("max_running", "max_submitted", "max_array_size"):
            if getattr(self, key) is not None:
                at_least(f"cluster.slurm.{key}", getattr(self, key), 1)
        for key in ("gpus", "max_device_hours", "max_dollars"):
            if getattr(self, key) is not None:
                at_least(f"cluster.slurm.{key}", getattr(self, key), 0)
        at_least("cluster.slurm.time_margin", self.time_margin, 1)
        one_of("cluster.slurm.long_families", self.long_families, LONG_FAMILIES)
        word_or_count("cluster.slurm.workers", self.workers, ("auto",), "processes per element")
        memory = self.memory_gib
        if memory not in ("auto", None) and not (type(memory) in (int, float) and memory > 0):
            raise UserError(f"cluster.slurm.memory_gib={memory}: must be auto, null (not asked for) or a number of GiB")


# TFLOP/s and seconds of overhead a step, for the guess before anything was measured: one core; a GPU of some years ago.
PEAK_TFLOPS = {"cpu": 0.1, "cuda": 300.0}
SECONDS_PER_STEP = {"cpu": 0.005, "cuda": 0.003}


@dataclass
class ClusterSection:
    """Where a sweep runs and what a device-hour costs there."""

    name: str = "local"
    scheduler: str = "local"
    dollars_per_device_hour: float = 0.0
    device_name: str | None = None
    device_memory_gib: float | None = None
    peak_tflops: float | None = None
    mfu: float = 0.4
    seconds_per_step: float | None = None
    slurm: SlurmSection = field(default_factory=SlurmSection)

    def __post_init__(self) -> None:
        one_of("cluster.scheduler", self.scheduler, SCHEDULERS)
        positive("cluster.mfu", self.mfu)
        at_least("cluster.dollars_per_device_hour", self.dollars_per_device_hour, 0)
        if self.peak_tflops is not None:
            positive("cluster.peak_tflops", self.peak_tflops)
        if self.seconds_per_step is not None:
            at_least("cluster.seconds_per_step", self.seconds_per_step, 0)

    def arithmetic_seconds(self, flops: float, device: str) -> float:
        """A guess of how long a device takes for so many FLOPs."""
        return flops / ((self.peak_tflops or PEAK_TFLOPS[device]) * 1e12 * self.mfu)

    def overhead_seconds(self, steps: int, device: str) -> float:
        """A guess of what the host's launches add, that no arithmetic hides."""
        return steps * (SECONDS_PER_STEP[device] if self.seconds_per_step is None else self.seconds_per_step)


@dataclass(frozen=True)
class Bucket:
    """A wall-time limit, with the partition and the QOS that go with it (None: those of the section)."""

    seconds: int
    name: str
    partition: str | None = None
    qos: str | None = None


def buckets(slurm: SlurmSection) -> list[Bucket]:
    """The wall-time limits to choose from, shortest first."""
    found = []
    for value in slurm.time_buckets:
        said = value if isinstance(value, dict) else {"time": value}
        key = f"cluster.slurm.time_buckets={value}"
        if "time" not in said or set(said) - set(BUCKET_KEYS):
            raise UserError(f"{key}: give a time such as 2h, or {{time:2h,partition:NAME,qos:NAME}}")
        seconds = parse_duration("cluster.slurm.time_buckets", said["time"])
        if seconds <= slurm.signal_seconds:
            raise UserError(
                f"{key}: must be longer than cluster.slurm.signal_seconds={slurm.signal_seconds}, "
                "in which a job saves before its time is up"
            )
        found.append(Bucket(seconds, str(said["time"]), said.get("partition"), said.get("qos")))
    if not found:
        raise UserError("cluster.slurm.time_buckets=[]: give at least one wall time, such as [2h]")
    return sorted(found, key=lambda bucket: bucket.seconds)


def _check_variable(name: str, value: Any) -> None:
    """A name that a shell takes, and no secret: what is given here is written into scripts."""
    key = f"cluster.slurm.environment.{name}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError(f"{key}: not the name of an environment variable")
    if value is not None and SECRET.search(name):
        raise UserError(
            f"{key}: a secret would be written into scripts; give {name}: null to pass your shell's on, or put it "
            "where its program looks for it (~/.netrc for W&B)"
        )
    if value is not None and (isinstance(value, dict | list) or "\n" in str(value)):
        raise UserError(f"{key}: must be one line of text, or null to pass your shell's value on")
