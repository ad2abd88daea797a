"""How a plan's families are packed onto devices, and why: alone, several in a stack, or several processes on a device.

`auto` chooses only what a calibration of the same shapes on the same kind of device found clearly faster; without one,
trials are trained alone, as many at a time as there are devices or cores. `plan --calibrate` calibrates, and so does a
launch on this machine for shapes that have much to train (`Plan.worth_calibrating`).

A stack holds one shape and has its device to itself. Processes side by side may train any shapes, so whether they share
a device is decided for everything that the device has to train.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.count import largest_micro_batch, memory_bytes
from sweep.common.errors import UserError
from sweep.common.units import counted
from sweep.config.schema import RunOptions
from sweep.plan.speeds import ALONE, Packing, Speeds, shape_key
from sweep.plan.trial import Trial, TrialConfig

CLEARLY = 1.05  # times as fast; a calibration that takes seconds cannot tell less than that
MOST_SLOTS = 64
PROCESSES = (2, 4, 8)  # on one GPU
CALIBRATION_SECONDS = {"cpu": 3.0, "cuda": 30.0}  # for one packing of one shape, compilation included
WORTH = 20  # a launch calibrates a shape whose training takes this many times as long as the calibration
MEMORY_SHARE = (
    0.8  # of device memory that the memory model may fill; the rest is for what it leaves out, the allocator's slack
)


SpeedOf = Callable[[Trial, Packing], float | None]  # as `Speeds.calibrated`


@dataclass(frozen=True)
class Execution:
    """Families of one shape, how they are packed, and why."""

    families: list[list[Trial]]
    trials_per_process: int  # of these families
    families_per_device: int  # of any shape
    packing: Packing
    why: str | None  # in words; None where there is a choice that has not been measured
    measured: bool  # whether a calibration made the choice

    @property
    def like(self) -> Trial:
        """One of its trials, for what they have in common."""
        return self.families[0][0]

    @property
    def flops(self) -> float:
        """About how much there is to train, each family's trunk counted once."""
        return sum(max(trial.flops for trial in family) for family in self.families)


def executions(
    families: list[list[Trial]], options: RunOptions, speeds: Speeds, device: str, device_model: str, peers: int = 1
) -> list[Execution]:
    """One for each shape, in the order of their first families. `peers` processes share the families."""
    shapes: dict[str, list[list[Trial]]] = defaultdict(list)
    for family in families:
        shapes[stack_key(family[0])].append(family)
    families_per_device = math.ceil(len(families) / peers)
    chosen = []
    for alike in shapes.values():
        trials_per_process = math.ceil(sum(map(len, alike)) / peers)
        packing, why, measured = _choose(
            Work.of(alike, peers), trials_per_process, options, speeds, device, device_model
        )
        chosen.append(Execution(alike, trials_per_process, families_per_device, packing, why, measured))
    if not _may_pack(options, device) or families_per_device < 2:
        return chosen
    return _packed(
        chosen,
        peers,
        _by_itself(options, device),
        lambda trial, packing: speeds.calibrated(trial, options, device_model, packing),
    )


def peers(options: RunOptions, device: str) -> int:
    """The processes that share the families of a launch on this machine; a calibration may ask for more on a GPU."""
    if options.workers != "auto":
        return int(options.workers)
    if device == "cuda":
        return gpus()
    return max(1, len(os.sched_getaffinity(0)) // options.threads)


def gpus() -> int:
    """The number of GPUs of this machine; 1 where a plan is made on a machine without one."""
    import torch

    return max(1, torch.cuda.device_count())


def stack_key(trial: Trial) -> str:
    """The same for trials that can share a stack: they compute the same on the same data."""
    return f"{shape_key(trial)} {trial.config.data.fingerprint}"


def candidates(
    trial: Trial,
    trials_per_process: int,
    families_per_device: int,
    options: RunOptions,
    device: str,
    device_bytes: float,
) -> list[Packing]:
    """The packings that a calibration tries beside training alone: stacks, and on a GPU several processes too."""
    needed = training_bytes(trial, options, device, device_bytes)
    fit = max(1, int((MEMORY_SHARE * device_bytes - resident_bytes(trial.config, device)) // needed))
    by_itself = _by_itself(options, device)
    packings = [by_itself] if by_itself != ALONE else []
    most = 2 ** int(math.log2(min(trials_per_process, fit, MOST_SLOTS)))
    if options.stack == "auto":
        packings += [Packing(stack=slots) for slots in sorted({most, most // 4}) if slots > 1]
    elif options.stack != "off":
        packings += [Packing(stack=options.stack)]
    if _may_pack(options, device):
        packings += [
            replace(by_itself, processes=count) for count in PROCESSES if count <= min(families_per_device, fit)
        ]
    return packings


def _by_itself(options: RunOptions, device: str) -> Packing:
    """The packing of one trial at a time. With `run.graph` it is a stack of one: a stack's step is what is captured."""
    return Packing(stack=1) if options.graph and device == "cuda" else ALONE


def _may_pack(options: RunOptions, device: str) -> bool:
    return device == "cuda" and options.workers == "auto" and options.stack in ("auto", "off")


def pays_to_calibrate(one: Execution, seconds: float, options: RunOptions, device: str, device_bytes: float) -> bool:
    """Whether a shape leaves a choice, and trains for so many seconds that measuring the choices pays."""
    others = candidates(one.like, one.trials_per_process, one.families_per_device, options, device, device_bytes)
    costs = (1 + len(others)) * CALIBRATION_SECONDS[device]
    return one.why is None and bool(others) and seconds >= WORTH * costs


@dataclass(frozen=True)
class Work:
    """What one process has to train of one shape, in optimizer steps."""

    like: Trial
    steps: float  # of all trials, each family's trunk counted once
    longest_curve: int  # of one trial, its trunk included; these steps follow each other even in a stack
    longest_family: float  # of one family; these follow each other where it is trained without a stack

    @classmethod
    def of(cls, families: list[list[Trial]], peers: int) -> "Work":
        steps = [
            max(t.config.branch_step for t in family) + sum(t.config.steps - t.config.branch_step for t in family)
            for family in families
        ]
        longest = max(trial.config.steps for family in families for trial in family)
        return cls(families[0][0], sum(steps) / peers, longest, max(steps))

    def seconds(self, packing: Packing, tokens_per_second: float, device: str) -> float:
        """How long the work takes, at a speed that was measured with all slots or processes busy.

        They are not all busy to the end: a trial cannot be divided, and on a GPU idle slots are computed too. Several
        processes share the device's time, so its seconds are counted and not theirs.
        """
        least = self.longest_curve * packing.stack if packing.processes == 1 and device == "cuda" else 0.0
        return max(self.steps, least) * self.like.config.batch_tokens / tokens_per_second


def _choose(
    work: Work, trials_per_process: int, options: RunOptions, speeds: Speeds, device: str, device_model: str
) -> tuple[Packing, str | None, bool]:
    """The packing of the trials of one shape, why, and whether that was measured."""
    alone = _by_itself(options, device)
    if trials_per_process < 2:
        return alone, "one trial of this shape", False
    if options.stack not in ("auto", "off"):
        return Packing(stack=min(options.stack, trials_per_process)), f"run.stack={options.stack}", False
    packings = [Packing(stack=2**k) for k in range(1, 7)] if options.stack == "auto" else []
    # On a GPU a stack may have idle slots, where it is faster even so.
    fitting = [packing for packing in packings if device == "cuda" or packing.stack <= trials_per_process]
    measured = {packing: speeds.calibrated(work.like, options, device_model, packing) for packing in (alone, *fitting)}
    seconds = {
        packing: work.seconds(packing, speed, device) if speed else math.inf
        for packing, speed in measured.items()
        if speed is not None
    }
    others = [packing for packing in seconds if packing != alone]
    if alone not in seconds or not others:
        return alone, "run.stack=off" if options.stack == "off" else None, False
    if not math.isfinite(seconds[alone]):
        return alone, "calibrated: the device has no memory for more, if for one", True
    best = min(others, key=lambda packing: seconds[packing])
    ratio = seconds[alone] / seconds[best]
    if ratio < CLEARLY:
        return alone, f"calibrated: {best} is {ratio:.2f} times as fast", True
    return best, f"calibrated: {ratio:.2f} times as fast as alone", True


def _packed(chosen: list[Execution], peers: int, by_itself: Packing, speed_of: SpeedOf) -> list[Execution]:
    """All shapes in processes side by side, where that is clearly faster than one shape after the other as chosen."""
    packings = [replace(by_itself, processes=count) for count in PROCESSES if count <= chosen[0].families_per_device]
    ratios = {packing: _speed_up(chosen, packing, peers, speed_of) for packing in packings}
    best = max(ratios, key=lambda packing: ratios[packing])
    if ratios[best] >= CLEARLY:
        why = f"calibrated: side by side {ratios[best]:.2f} times as fast as one after the other"
        return [replace(one, packing=best, why=why, measured=True) for one in chosen]
    if ratios[best] > 0:
        but = f"calibrated: {best} are {ratios[best]:.2f} times as fast"
        return [
            replace(one, why=but, measured=True) if one.trials_per_process < 2 or one.why is None else one
            for one in chosen
        ]
    unknown = [all(speed_of(one.like, packing) is None for packing in packings) for one in chosen]
    return [
        replace(one, why=None) if one.trials_per_process < 2 and new else one
        for one, new in zip(chosen, unknown, strict=True)
    ]


def _speed_up(chosen: list[Execution], packing: Packing, peers: int, speed_of: SpeedOf) -> float:
    """How many times as fast a device trains everything in this packing as one shape after the other.

    0 where that is not known: only shapes that were measured in both count, and they must hold most of the work.
    """
    in_turns = side_by_side = longest = flops = 0.0
    for one in chosen:
        before, after = speed_of(one.like, one.packing), speed_of(one.like, packing)
        if not before or after is None:
            continue
        if after == 0:
            return 0.0
        work = Work.of(one.families, peers)
        in_turns += work.seconds(one.packing, before, "cuda")
        side_by_side += work.seconds(packing, after, "cuda")
        longest = max(longest, work.longest_family * one.like.config.batch_tokens * packing.processes / after)
        flops += one.flops
    return in_turns / max(side_by_side, longest) if flops > sum(one.flops for one in chosen) / 2 else 0.0


def micro_batch(trial: Trial, options: RunOptions, device: str, device_bytes: float, slots: int = 0) -> int:
    """Sequences of one forward pass: as asked; else the whole batch on the CPU, and on a GPU as many as memory fits.

    `device_bytes` is the process's share of device memory, `slots` the number of trials in its stack (0: no stack).
    """
    config = trial.config
    if options.micro_batch_sequences is not None:
        return options.micro_batch_sequences
    if device == "cpu":
        return config.batch_sequences
    available = MEMORY_SHARE * device_bytes
    if slots:
        available = (available - resident_bytes(config, device)) / slots
    return largest_micro_batch(config.model, config.batch_sequences, config.precision, available)


def resident_bytes(config: TrialConfig, device: str) -> int:
    """Bytes of the training tokens, which a stack keeps on a GPU (`sweep.train.cuda_graph.resident`)."""
    bytes_per_token = 2 if config.model.vocab_size <= 2**16 else 4
    return config.data.unique_sequences * config.model.seq_len * bytes_per_token if device == "cuda" else 0


def check_micro_batch(options: RunOptions, batch_sequences: int) -> None:
    """UserError where a micro-batch that was asked for does not divide the batch."""
    size = options.micro_batch_sequences
    if size and batch_sequences % size:
        raise UserError(f"run.micro_batch_sequences={size}: must divide batch.sequences={batch_sequences}")


def training_bytes(trial: Trial, options: RunOptions, device: str, device_bytes: float) -> int:
    """The device memory that a trial takes while it trains, by the memory model."""
    size = micro_batch(trial, options, device, device_bytes)
    return memory_bytes(trial.config.model, size, trial.config.precision)["total"]


def processes_per_device(chosen: list[Execution]) -> int:
    """The number of processes to start on each GPU."""
    return max((one.packing.processes for one in chosen), default=1)


def described(chosen: list[Execution]) -> list[str]:
    """A line for each packing, with what is trained in it; none for shapes that leave no choice."""
    lines: dict[tuple[Packing, str | None], list[Execution]] = defaultdict(list)
    for one in chosen:
        if one.trials_per_process > 1 or one.packing.processes > 1 or one.why is None:
            lines[one.packing, one.why].append(one)
    return [_described(packing, why, alike) for (packing, why), alike in lines.items()]


def _described(packing: Packing, why: str | None, alike: list[Execution]) -> str:
    families = counted(sum(len(one.families) for one in alike), "family", "families")
    which = f"{families} of {counted(len(alike), 'shape', 'shapes')}"
    if why is None:
        return f"{which} could train several trials at a time; `plan --calibrate` measures whether that is faster here"
    return f"{packing}: {which} ({why})"
