"""Every key of the configuration: its type, its default, what it means, and which values it takes.

This is the only place where a default stands: `conf/` holds what differs from it. The keys of a data source stand with
the code that reads it, in `sweep/data`. `python -m sweep config` lists all of them.

Nothing here is resolved yet: a size may be "1M", a learning rate may follow a rule. `sweep.plan` turns a `Config` into
the numbers that define a trial. A section checks its own values when it is made, and raises UserError.
"""

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from sweep.common.errors import UserError
from sweep.common.keys import key
from sweep.common.units import parse_duration
from sweep.common.validate import at_least, between, one_of, positive, word_or_count
from sweep.data.sources import DataConfig

Quantity = int | float | str  # a number, or text such as 500k, 1M, 3e15
WordOrCount = Any  # one of the key's choices, or a number
Scalar = str | int | float | bool

# The choices of the model and of the backend are those of `models.config` and `kernels.attention`. They are repeated
# here because what reads results must start without torch; a test compares them.
MLPS = ("relu2", "swiglu", "gelu")
NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rope", "learned")
BACKENDS = ("auto", "sdpa", "cudnn", "triton", "reference")
SCHEDULES = ("wsd", "cosine")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
WANDB_MODES = ("auto", "online", "offline", "off")
SCHEDULERS = ("local", "slurm")
LONG_FAMILIES = ("refuse", "requeue")
BUCKET_KEYS = ("time", "partition", "qos")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)

# TFLOP/s and seconds of overhead per step that a plan assumes before anything was measured: of one CPU core, and of a
# GPU that is some years old.
PEAK_TFLOPS = {"cpu": 0.1, "cuda": 300.0}
SECONDS_PER_STEP = {"cpu": 0.005, "cuda": 0.003}


# ---- what defines a trial ----


@dataclass
class ModelSection:
    """The model: a size (`params`) or a shape (`depth`, `width`, `heads`), and the architecture."""

    name: str = key("gpt", "name of the architecture, which is that of its file in conf/model")
    params: Quantity | None = key(None, "non-embedding parameters such as 1M; chooses the nearest size of the ladder")
    depth: int | None = key(None, "an explicit shape instead of params: number of blocks")
    width: int | None = key(None, "an explicit shape: channels of the residual stream")
    heads: int | None = key(None, "an explicit shape: attention heads; null: width / head_dim")
    kv_heads: int | None = key(None, "key and value heads; fewer than heads is grouped-query attention; null: heads")
    head_dim: int | None = key(None, "channels of one head; null: width / heads")
    mlp_width: int | None = key(
        None, "channels inside the MLP; null: 4 * width, for swiglu 8/3 * width rounded up to a multiple of 8"
    )
    mlp: str = key("relu2", "activation of the MLP", MLPS)
    norm: str = key("rmsnorm", "normalisation; rmsnorm has no gains and normalises the embedding too", NORMS)
    positions: str = key("rope", "how positions enter", POSITIONS)
    rope_base: float = key(10_000.0, "base of the rotary frequencies")
    qk_norm: bool = key(True, "RMS-normalise queries and keys, with a gain")
    tied: bool = key(False, "the output head is the embedding matrix")
    bias: bool = key(False, "bias vectors in linear layers and norms")
    window: int = key(0, "keys that a query sees, itself included; 0: all before it")
    within_documents: bool = key(False, "attention stops at document boundaries")
    ladder: list[list[int]] = key(list, "sizes that params chooses from, each [depth, width, heads]")


@dataclass
class OptimSection:
    """AdamW. The learning rate follows lr_base * sqrt(64 / width) * lr_multiplier unless `lr` is given."""

    lr: float | None = key(None, "peak learning rate; null: lr_base * sqrt(64 / width) * lr_multiplier")
    lr_base: float = key(6e-3, "learning rate of the rule at width 64, measured by the sweep `lr`")
    lr_multiplier: float = key(1.0, "multiple of the rule's learning rate; the axis for tuning")
    beta1: float = key(0.9, "decay of the running mean of gradients")
    beta2: float = key(0.95, "decay of the running mean of squared gradients")
    eps: float = key(1e-8, "added to the denominator of an update")
    weight_decay: float = key(0.1, "decoupled weight decay, on matrices only")
    clip_norm: float = key(1.0, "gradients are scaled down to this global norm")

    def __post_init__(self) -> None:
        for name in ("lr_base", "lr_multiplier", "eps", "clip_norm", *(() if self.lr is None else ("lr",))):
            positive(f"optim.{name}", getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name}={getattr(self, name)}: must be at least 0 and below 1")
        at_least("optim.weight_decay", self.weight_decay, 0)


@dataclass
class ScheduleSection:
    """The learning rate over the steps: warm-up, then stable and decay (wsd), or a cosine."""

    name: str = key("wsd", "with wsd all budgets of a family share the stable part; with cosine nothing", SCHEDULES)
    warmup_tokens: Quantity | None = key(None, "tokens of the linear warm-up; null: warmup_tokens_per_param * N")
    warmup_tokens_per_param: float = key(0.2, "warm-up tokens for every non-embedding parameter")
    decay_fraction: float = key(0.2, "fraction of the steps, at the end, over which the rate decays (wsd)")
    final_lr_fraction: float = key(0.0, "learning rate of the last step, as a fraction of the peak")

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULES)
        between("schedule.decay_fraction", self.decay_fraction, 0, 1)
        between("schedule.final_lr_fraction", self.final_lr_fraction, 0, 1)
        at_least("schedule.warmup_tokens_per_param", self.warmup_tokens_per_param, 0)


@dataclass
class BatchSection:
    """How much data one optimizer step takes."""

    sequences: int = key(16, "sequences in one optimizer step, whatever the micro-batch")

    def __post_init__(self) -> None:
        at_least("batch.sequences", self.sequences, 1)


@dataclass
class BudgetSection:
    """How long a trial trains: exactly one of the three."""

    tokens: Quantity | None = key(None, "D: tokens seen")
    flops: Quantity | None = key(None, "C: exact training FLOPs, attention and logits included")
    tokens_per_param: Quantity | None = key(None, "D / N, where N leaves out embeddings")


@dataclass
class EvalSection:
    """What is measured while a trial trains. The steps are the same for every budget."""

    sequences: int = key(128, "sequences of the fixed validation set")
    first_step: int = key(8, "the first step that is validated")
    points_per_doubling: int = key(2, "validations, at log-spaced steps, while the step doubles")
    log_every_steps: int = key(100, "write a row of training metrics at least this often")
    sample_tokens: int = key(96, "tokens of sample text, generated at log-spaced steps; 0: none")

    def __post_init__(self) -> None:
        for name in ("sequences", "first_step", "points_per_doubling", "log_every_steps"):
            at_least(f"eval.{name}", getattr(self, name), 1)
        at_least("eval.sample_tokens", self.sample_tokens, 0)


# ---- how it is executed ----


@dataclass
class RunOptions:
    """How a trial is executed: rounding and speed, never which trial it is."""

    device: str = key("auto", "where to train; auto: CUDA where there is a GPU", DEVICES)
    backend: str = key("auto", "implementation of attention and loss; auto: the best for the device", BACKENDS)
    compile: bool = key(False, "torch.compile the training step")
    micro_batch_sequences: int | None = key(None, "sequences per forward pass; null: the whole batch at once")
    stack: WordOrCount = key(
        "auto",
        "trials of one shape trained as one program: at most this many; auto: where it was measured to be faster",
        ("auto", "off"),
    )
    graph: bool = key(False, "capture the whole step as one CUDA graph")
    threads: int = key(1, "CPU threads of one worker")
    workers: WordOrCount = key(
        "auto",
        "worker processes; auto: CPU cores / threads, or one per GPU and more where a calibration found that faster",
        ("auto",),
    )
    deterministic: bool = key(True, "use deterministic algorithms only")
    checkpoint_seconds: float = key(60.0, "seconds between checkpoints; inf: only at the end")
    keep_weights: bool = key(True, "keep model.pt in the run directory of a finished trial")

    def __post_init__(self) -> None:
        one_of("run.device", self.device, DEVICES)
        at_least("run.threads", self.threads, 1)
        word_or_count("run.workers", self.workers, ("auto",), "processes")
        word_or_count("run.stack", self.stack, ("auto", "off"), "trials")
        if self.backend == "cudnn" and self.deterministic:
            raise UserError("run.backend=cudnn: is not deterministic; give run.deterministic=false with it")
        if self.micro_batch_sequences is not None:
            at_least("run.micro_batch_sequences", self.micro_batch_sequences, 1)
        if self.checkpoint_seconds != inf:
            at_least("run.checkpoint_seconds", self.checkpoint_seconds, 0)


@dataclass
class PathsSection:
    """Folders, relative to where the command runs."""

    runs: str = key("runs", "one folder per trial")
    sweeps: str = key("sweeps", "one folder per sweep")
    tokens: str = key("tokens", "prepared token shards")

    def __post_init__(self) -> None:
        for name, folder in vars(self).items():
            if Path(folder).exists() and not Path(folder).is_dir():
                raise UserError(f"paths.{name}={folder}: is a file; give a folder")


@dataclass
class WandbSection:
    """Whether a sweep is mirrored to W&B. The run directory is the truth; never part of a trial."""

    mode: str = key("auto", "auto: online where there is an API key, offline where there is none", WANDB_MODES)
    project: str = key("scaling-sweeps", "W&B project")
    entity: str | None = key(None, "W&B user or team; null: that of the API key")
    every_seconds: float = key(10.0, "seconds between uploads of what is new")
    patience_seconds: float = key(30.0, "seconds that the mirror waits for W&B at the end; training never waits")

    def __post_init__(self) -> None:
        one_of("wandb.mode", self.mode, WANDB_MODES)
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise UserError(f"wandb.project={self.project}: up to 128 characters, none of / \\ # ? % :")
        for name in ("every_seconds", "patience_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"wandb.{name}={getattr(self, name)}: must be positive")


@dataclass
class SweepSection:
    """A grid of trials. `sweep=NAME` takes it from conf/sweep/NAME.yaml."""

    name: str = key("adhoc", "name of the sweep and of its folder")
    axes: dict[str, Any] = key(dict, "key: values in Hydra's sweep grammar, such as 1M,3M or range(3)")
    where: list[str] = key(list, "conditions that every trial must meet, such as tokens_per_param <= 500")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise UserError(f"sweep.name={self.name}: names a folder; use letters, digits and . _ + -")
        for axis, values in self.axes.items():
            if values is None or isinstance(values, dict):
                raise UserError(f"sweep.axes.{axis}={values}: no values of one key; write such as model.params: 3k,12k")
        for condition in self.where:
            if not isinstance(condition, str):
                raise UserError(f"sweep.where: {condition}: not a condition; write one such as tokens_per_param <= 500")


# ---- where it runs ----


@dataclass
class SlurmJobSection:
    """What a job beside the arrays asks for."""

    partition: str | None = key(None, "null: the partition of the arrays")
    cpus: int = key(2, "CPU cores")
    memory_gib: float | None = key(None, "GiB of host memory; null: not asked for")
    time: str = key("1h", "wall-time limit, such as 30m or 1d12h")


@dataclass
class SlurmSection:
    """How Slurm arrays are asked for. Times are text with units, such as 30m or 1d12h."""

    partition: str | None = key(None, "null, here and in the next three: not said, so Slurm's default")
    account: str | None = key(None, "account that is charged")
    qos: str | None = key(None, "quality of service")
    constraint: str | None = key(None, "features that a node must have")
    gpus: int = key(1, "GPUs of one array element; 0 on a cluster of CPUs")
    gres_name: str = key("gpu", "name of the GPU resource, with a type where needed: gpu:a100")
    cpus: int = key(8, "CPU cores of one array element")
    memory_gib: WordOrCount = key(
        "auto", "GiB of host memory of one array element; auto: from the plan; null: not asked for", ("auto",)
    )
    workers: WordOrCount = key(
        "auto", "worker processes of one array element; auto: as many as fill the device and fit into it", ("auto",)
    )
    mps: bool = key(True, "let workers share a GPU through NVIDIA's MPS where a node has it")
    time_buckets: list[Any] = key(
        lambda: ["30m", "2h", "8h", "24h"],
        "wall-time limits; a family goes into the shortest that holds its estimate times time_margin. An entry may "
        "name where it runs: {time: 30m, partition: short, qos: debug}",
    )
    time_margin: float = key(1.5, "multiple of a family's estimate that its bucket must hold")
    long_families: str = key(
        "refuse", "a family that fits no bucket: refuse it, or requeue (it saves and continues)", LONG_FAMILIES
    )
    signal_seconds: int = key(120, "seconds before its time is up at which a job is told to save")
    max_running: int | None = key(None, "array elements that run at once; null: no limit of ours")
    max_submitted: int | None = key(None, "array elements in the queue at once, as your association or QOS allows")
    max_array_size: int | None = key(None, "elements of one array; null: asked of Slurm")
    max_device_hours: float | None = key(None, "refuse a launch that needs more device-hours")
    max_dollars: float | None = key(None, "refuse a launch that costs more dollars")
    max_attempts_without_progress: int = key(3, "starts in a row without a new checkpoint before a family is given up")
    sbatch_lines: list[str] = key(list, "more options of sbatch, such as --exclusive or --mail-type=FAIL")
    setup: list[str] = key(list, "shell lines before the job's command, such as module load cuda/12.4")
    environment: dict[str, Scalar | None] = key(
        dict, "variables of the jobs as NAME: value; NAME: null passes your shell's on without writing it anywhere"
    )
    srun_arguments: list[str] = key(list, "arguments of srun, such as Pyxis' --container-image=…")
    command_prefix: list[str] = key(list, "words before the job's command, such as apptainer, exec, --nv, image")
    python: str | None = key(None, "Python interpreter of the jobs; null: the one that launches")
    paths_are_shared: bool = key(False, "paths.* are on a file system that all nodes see, whatever it looks like here")
    prepare: SlurmJobSection = key(
        lambda: SlurmJobSection(cpus=8, time="8h"), "the job that prepares data which is not there yet"
    )
    collector: SlurmJobSection = key(SlurmJobSection, "the job that collects, fits and reports at the end")

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, job in (("prepare", self.prepare), ("collector", self.collector)):
            at_least(f"cluster.slurm.{name}.cpus", job.cpus, 1)
            parse_duration(f"cluster.slurm.{name}.time", job.time)
        for variable, value in self.environment.items():
            _check_variable(variable, value)
        for name, lines in (("sbatch_lines", self.sbatch_lines), ("setup", self.setup)):
            for line in lines:
                if "\n" in line:
                    raise UserError(f"cluster.slurm.{name}: {line!r} is more than one line; give a list of lines")
        for line in self.setup:
            for variable in re.findall(r"(\w+)=\S", line):
                _check_variable(variable, line)
        for line in self.sbatch_lines:
            if not line.startswith("-"):
                raise UserError(f"cluster.slurm.sbatch_lines: {line!r}: give options of sbatch, such as --exclusive")
        buckets(self)

    def _check_numbers(self) -> None:
        for name in ("cpus", "signal_seconds", "max_attempts_without_progress"):
            at_least(f"cluster.slurm.{name}", getattr(self, name), 1)
        for name in ("max_running", "max_submitted", "max_array_size"):
            if getattr(self, name) is not None:
                at_least(f"cluster.slurm.{name}", getattr(self, name), 1)
        for name in ("gpus", "max_device_hours", "max_dollars"):
            if getattr(self, name) is not None:
                at_least(f"cluster.slurm.{name}", getattr(self, name), 0)
        at_least("cluster.slurm.time_margin", self.time_margin, 1)
        one_of("cluster.slurm.long_families", self.long_families, LONG_FAMILIES)
        word_or_count("cluster.slurm.workers", self.workers, ("auto",), "processes per element")
        memory = self.memory_gib
        if memory not in ("auto", None) and not (type(memory) in (int, float) and memory > 0):
            raise UserError(f"cluster.slurm.memory_gib={memory}: must be auto, null (not asked for) or a number of GiB")


@dataclass
class ClusterSection:
    """Where a sweep runs, and what a device-hour costs there. Measured speeds win over every guess below."""

    name: str = key("local", "name of the cluster, which is that of its file in conf/cluster")
    scheduler: str = key("local", "local: worker processes on this machine; slurm: array jobs", SCHEDULERS)
    dollars_per_device_hour: float = key(0.0, "price of one device (GPU, or CPU core) for an hour")
    device_name: str | None = key(None, "as torch.cuda.get_device_name() says it; null: that of this machine")
    device_memory_gib: float | None = key(None, "GiB of memory of one device; null: that of this machine")
    peak_tflops: float | None = key(None, "TFLOP/s of one device; null: 0.1 for a CPU core, 300 for a GPU")
    mfu: float = key(0.4, "fraction of the peak that training is guessed to reach")
    seconds_per_step: float | None = key(
        None, "launch overhead of a step that no arithmetic hides; null: 0.005 on a CPU, 0.003 on a GPU"
    )
    slurm: SlurmSection = key(SlurmSection, "how Slurm arrays are asked for")

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
        """A guess of the time that the host adds, which no arithmetic hides."""
        return steps * (SECONDS_PER_STEP[device] if self.seconds_per_step is None else self.seconds_per_step)


@dataclass(frozen=True)
class Bucket:
    """A wall-time limit, with the partition and the QOS that go with it (None: those of `cluster.slurm`)."""

    seconds: int
    name: str
    partition: str | None = None
    qos: str | None = None


def buckets(slurm: SlurmSection) -> list[Bucket]:
    """The wall-time limits to choose from, shortest first."""
    found = []
    for value in slurm.time_buckets:
        said = value if isinstance(value, dict) else {"time": value}
        where = f"cluster.slurm.time_buckets={value}"
        if "time" not in said or set(said) - set(BUCKET_KEYS):
            raise UserError(f"{where}: give a time such as 2h, or {{time:2h,partition:NAME,qos:NAME}}")
        seconds = parse_duration("cluster.slurm.time_buckets", said["time"])
        if seconds <= slurm.signal_seconds:
            raise UserError(
                f"{where}: must be longer than cluster.slurm.signal_seconds={slurm.signal_seconds}, "
                "in which a job saves before its time is up"
            )
        found.append(Bucket(seconds, str(said["time"]), said.get("partition"), said.get("qos")))
    if not found:
        raise UserError("cluster.slurm.time_buckets=[]: give at least one wall time, such as [2h]")
    return sorted(found, key=lambda bucket: bucket.seconds)


def _check_variable(name: str, value: object) -> None:
    """A name that a shell takes, and no secret: what is given here is written into scripts."""
    where = f"cluster.slurm.environment.{name}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError(f"{where}: not the name of an environment variable")
    if value is not None and SECRET.search(name):
        raise UserError(
            f"{where}: a secret would be written into scripts; give {name}: null to pass your shell's on, or put it "
            "where its program looks for it (~/.netrc for W&B)"
        )
    if value is not None and (isinstance(value, dict | list) or "\n" in str(value)):
        raise UserError(f"{where}: must be one line of text, or null to pass your shell's value on")


# ---- all of it ----


@dataclass
class Config:
    """A composed config: one value for every key."""

    model: ModelSection
    data: DataConfig
    optim: OptimSection
    schedule: ScheduleSection
    batch: BatchSection
    budget: BudgetSection
    eval: EvalSection
    run: RunOptions
    cluster: ClusterSection
    wandb: WandbSection
    paths: PathsSection
    sweep: SweepSection
    seed: int = key(0, "drives the initial weights and the order of the data, nothing else")
    seq_len: int = key(256, "tokens in a sequence")
    precision: str = key("auto", "auto: bf16 on CUDA, fp32 on the CPU", PRECISIONS)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")
        at_least("seq_len", self.seq_len, 2)
        one_of("precision", self.precision, PRECISIONS)
