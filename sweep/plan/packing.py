"""How a plan's families are executed: alone, several in one stack, or several processes on a device; and why.

`auto` chooses only what a calibration of the same shapes on the same kind of device found faster by a clear margin;
without one, trials are trained alone, as many at a time as there are devices or cores. `plan --calibrate` calibrates,
and so does a launch on this machine, for shapes that have much to train (`Plan.worth_calibrating`).

A stack is of one shape and has its device to itself. Processes side by side are of any shapes, so whether a device is
shared so is decided for all that it has to train.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.count import largest_micro_batch, memory_bytes
from sweep.common.errors import UserError
from sweep.common.units import counted
from sweep.config.compose import RunOptions
from sweep.plan.speeds import ALONE, Speeds, Way, shape_key
from sweep.plan.trial import Trial, TrialConfig

CLEARLY = 1.05  # times as fast: below that a calibration of seconds cannot tell
MOST_SLOTS = 64
PROCESSES = (2, 4, 8)  # on one GPU
CALIBRATION_SECONDS = {"cpu": 3.0, "cuda": 30.0}  # of one way for one shape, compilation included
WORTH = 20  # times as long as its calibration a shape must train, for a launch to calibrate it
MEMORY_SHARE = 0.8  # of a device's, for the memory model's bytes: it leaves out the allocator's slack


SpeedOf = Callable[[Trial, Way], float | None]  # as `Speeds.calibrated`


@dataclass(frozen=True)
class Execution:
    """Families of one shape, the way that they are trained, and why."""

    families: list[list[Trial]]
    curves: int  # trials that one process will train of them
    company: int  # families of any shape that one device has to train
    way: Way
    why: str | None  # in words; None where there is a choice that nobody has measured
    measured: bool  # whether it is a calibration that chose the way

    @property
    def like(self) -> Trial:
        """One of its trials, for what they have in common."""
        return self.families[0][0]

    @property
    def flops(self) -> float:
        """About what is to be trained, a family's trunk counted once."""
        return sum(max(trial.flops for trial in family) for family in self.families)


def executions(
    families: list[list[Trial]], options: RunOptions, speeds: Speeds, device: str, device_model: str, peers: int = 1
) -> list[Execution]:
    """One for each shape, in the order of their first families. `peers` processes share them."""
    shapes: dict[str, list[list[Trial]]] = defaultdict(list)
    for family in families:
        shapes[stack_key(family[0])].append(family)
    company = math.ceil(len(families) / peers)
    chosen = []
    for alike in shapes.values():
        curves = math.ceil(sum(map(len, alike)) / peers)
        way, why, measured = _choose(Work.of(alike, peers), curves, options, speeds, device, device_model)
        chosen.append(Execution(alike, curves, company, way, why, measured))
    if not _may_pack(options, device) or company < 2:
        return chosen
    return _packed(
        chosen,
        peers,
        _by_itself(options, device),
        lambda trial, way: speeds.calibrated(trial, options, device_model, way),
    )


def peers(options: RunOptions, device: str) -> int:
    """How many processes share the families of a launch on this machine; on a GPU more where a calibration says so."""
    if options.workers != "auto":
        return int(options.workers)
    if device == "cuda":
        return gpus()
    return max(1, len(os.sched_getaffinity(0)) // options.threads)


def gpus() -> int:
    """Of this machine; 1 where a plan is made without one."""
    import torch

    return max(1, torch.cuda.device_count())


def stack_key(trial: Trial) -> str:
    """The same for trials that can share a stack: they compute the same on the same data."""
    return f"{shape_key(trial)} {trial.config.data.fingerprint}"


def candidates(
    trial: Trial, curves: int, company: int, options: RunOptions, device: str, device_bytes: float
) -> list[Way]:
    """What a calibration tries beside training alone: stacks, and on a GPU several processes too."""
    needed = training_bytes(trial, options, device, device_bytes)
    fit = max(1, int((MEMORY_SHARE * device_bytes - resident_bytes(trial.config, device)) // needed))
    by_itself = _by_itself(options, device)
    ways = [by_itself] if by_itself != ALONE else []
    most = 2 ** int(math.log2(min(curves, fit, MOST_SLOTS)))
    if options.stack == "auto":
        ways += [Way(stack=slots) for slots in sorted({most, most // 4}) if slots > 1]
    elif options.stack != "off":
        ways += [Way(stack=options.stack)]
    if _may_pack(options, device):
        ways += [replace(by_itself, processes=count) for count in PROCESSES if count <= min(company, fit)]
    return ways


def _by_itself(options: RunOptions, device: str) -> Way:
    """The way of one trial at a time: what is captured is a stack's step."""
    return Way(stack=1) if options.graph and device == "cuda" else ALONE


def _may_pack(options: RunOptions, device: str) -> bool:
    return device == "cuda" and options.workers == "auto" and options.stack in ("auto", "off")


def pays_to_calibrate(one: Execution, seconds: float, options: RunOptions, device: str, device_bytes: float) -> bool:
    """Whether a shape leaves a choice, and so many seconds to train, that it is worth measuring which way is faster."""
    others = candidates(one.like, one.curves, one.company, options, device, device_bytes)
    costs = (1 + len(others)) * CALIBRATION_SECONDS[device]
    return one.why is None and bool(others) and seconds >= WORTH * costs


@dataclass(frozen=True)
class Work:
    """What one process will train of a shape, in optimizer steps."""

    like: Trial
    steps: float  # of all its curves, a family's trunk counted once
    longest_curve: int  # of one trial, its trunk included: they follow each other even in a stack
    longest_family: float  # of one family: they follow each other where it is trained without a stack

    @classmethod
    def of(cls, families: list[list[Trial]], peers: int) -> "Work":
        steps = [
            max(t.config.branch_step for t in family) + sum(t.config.steps - t.config.branch_step for t in family)
            for family in families
        ]
        longest = max(trial.config.steps for family in families for trial in family)
        return cls(families[0][0], sum(steps) / peers, longest, max(steps))

    def seconds(self, way: Way, tokens_per_second: float, device: str) -> float:
        """How long it takes, at a speed that was measured with all slots or processes at work.

        They are not all at work to the end: a curve cannot be divided, and on a GPU idle slots are computed. Of
        processes it is the device's time, their number in one the share of each.
        """
        least = self.longest_curve * way.stack if way.processes == 1 and device == "cuda" else 0.0
        return max(self.steps, least) * self.like.config.batch_tokens / tokens_per_second


def _choose(
    work: Work, curves: int, options: RunOptions, speeds: Speeds, device: str, device_model: str
) -> tuple[Way, str | None, bool]:
    """The way for as many curves of a shape as one process will train, why, and whether that was measured."""
    alone = _by_itself(options, device)
    if curves < 2:
        return alone, "one trial of this shape", False
    if options.stack not in ("auto", "off"):
        return Way(stack=min(options.stack, curves)), f"run.stack={options.stack}", False
    ways = [Way(stack=2**k) for k in range(1, 7)] if options.stack == "auto" else []
    # On a GPU slots may stay idle, if that is faster still.
    fitting = [way for way in ways if device == "cuda" or way.stack <= curves]
    measured = {way: speeds.calibrated(work.like, options, device_model, way) for way in (alone, *fitting)}
    seconds = {
        way: work.seconds(way, speed, device) if speed else math.inf
        for way, speed in measured.items()
        if speed is not None
    }
    others = [way for way in seconds if way != alone]
    if alone not in seconds or not others:
        return alone, "run.stack=off" if options.stack == "off" else None, False
    if not math.isfinite(seconds[alone]):
        return alone, "calibrated: the device has no memory for more, if for one", True
    best = min(others, key=lambda way: seconds[way])
    ratio = seconds[alone] / seconds[best]
    if ratio < CLEARLY:
        return alone, f"calibrated: {best} is {ratio:.2f} times as fast", True
    return best, f"calibrated: {ratio:.2f} times as fast as alone", True


def _packed(chosen: list[Execution], peers: int, by_itself: Way, speed_of: SpeedOf) -> list[Execution]:
    """All shapes side by side where that is clearly faster than one after the other as chosen; else as chosen."""
    ways = [replace(by_itself, processes=count) for count in PROCESSES if count <= chosen[0].company]
    ratios = {way: _speed_up(chosen, way, peers, speed_of) for way in ways}
    best = max(ratios, key=lambda way: ratios[way])
    if ratios[best] >= CLEARLY:
        why = f"calibrated: side by side {ratios[best]:.2f} times as fast as one after the other"
        return [replace(one, way=best, why=why, measured=True) for one in chosen]
    if ratios[best] > 0:
        but = f"calibrated: {best} are {ratios[best]:.2f} times as fast"
        return [replace(one, why=but, measured=True) if one.curves < 2 or one.why is None else one for one in chosen]
    unknown = [all(speed_of(one.like, way) is None for way in ways) for one in chosen]
    return [replace(one, why=None) if one.curves < 2 and new else one for one, new in zip(chosen, unknown, strict=True)]


def _speed_up(chosen: list[Execution], way: Way, peers: int, speed_of: SpeedOf) -> float:
    """How many times as fast a device trains all this way as one shape after the other; 0 where that is not known.

    Shapes count that were measured in both, and they must hold most of the work.
    """
    in_turns = side_by_side = longest = flops = 0.0
    for one in chosen:
        before, after = speed_of(one.like, one.way), speed_of(one.like, way)
        if not before or after is None:
            continue
        if after == 0:
            return 0.0
        work = Work.of(one.families, peers)
        in_turns += work.seconds(one.way, before, "cuda")
        side_by_side += work.seconds(way, after, "cuda")
        longest = max(longest, work.longest_family * one.like.config.batch_tokens * way.processes / after)
        flops += one.flops
    return in_turns / max(side_by_side, longest) if flops > sum(one.flops for one in chosen) / 2 else 0.0


def micro_batch(trial: Trial, options: RunOptions, device: str, device_bytes: float, slots: int = 0) -> int:
    """Sequences at a time: as asked; on the CPU the whole batch, and on a GPU the most that the memory model fits.

    `device_bytes` is what the process has of the device, `slots` how many trials it trains in a stack (0: none).
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
    """Of the training tokens, which a stack keeps on a GPU (`sweep.train.cuda_graph.resident`)."""
    bytes_per_token = 2 if config.model.vocab_size <= 2**16 else 4
    return config.data.unique_sequences * config.model.seq_len * bytes_per_token if device == "cuda" else 0


def check_micro_batch(options: RunOptions, batch_sequences: int) -> None:
    size = options.micro_batch_sequences
    if size and batch_sequences % size:
        raise UserError(f"run.micro_batch_sequences={size}: must divide batch.sequences={batch_sequences}")


def training_bytes(trial: Trial, options: RunOptions, device: str, device_bytes: float) -> int:
    """What a trial takes of a device while it trains, by the memory model."""
    size = micro_batch(trial, options, device, device_bytes)
    return memory_bytes(trial.config.model, size, trial.config.precision)["total"]


def processes_per_device(chosen: list[Execution]) -> int:
    """How many processes to start on each GPU."""
    return max((one.way.processes for one in chosen), default=1)


def described(chosen: list[Execution]) -> list[str]:
    """A line for each way of training, with what is trained so; none for shapes that leave no choice."""
    lines: dict[tuple[Way, str | None], list[Execution]] = defaultdict(list)
    for one in chosen:
        if one.curves > 1 or one.way.processes > 1 or one.why is None:
            lines[one.way, one.why].append(one)
    return [_described(way, why, alike) for (way, why), alike in lines.items()]


def _described(way: Way, why: str | None, alike: list[Execution]) -> str:
    families = counted(sum(len(one.families) for one in alike), "family", "families")
    which = f"{families} of {counted(len(alike), 'shape', 'shapes')}"
    if why is None:
        return f"{which} could train several trials at a time; `plan --calibrate` measures whether that is faster here"
    return f"{way}: {which} ({why})"
