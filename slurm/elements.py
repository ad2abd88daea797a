"""Which families train together: from what each family needs to the elements of Slurm arrays. It calls no Slurm.

An element is one array task: some GPUs or cores for a limited time, in which a few workers take families in turn. A
family goes into the shortest time bucket that holds it. The families of a bucket are spread evenly over as few elements
as hold them, so that short trials do not each pay for the start of a job, and all elements end at about the same time.
Families that a calibration found to be faster in a stack are kept together by their shape.
"""

import heapq
import math
from collections import defaultdict
from dataclasses import dataclass

from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.config.schema import Bucket, SlurmSection, buckets
from sweep.plan.packing import stack_key
from sweep.plan.plan import ADAM_BYTES_PER_PARAM, Plan
from sweep.plan.trial import Trial

MOST_WORKERS_PER_GPU = 8
DEVICE_MEMORY_SHARE = 0.9  # of a GPU's memory is for its workers; CUDA itself takes the rest
PROCESS_BYTES = {"cpu": 1 << 30, "cuda": 6 << 30}  # of host memory before any model: Python, torch, CUDA's libraries
GIB = 1 << 30


@dataclass(frozen=True)
class Need:
    """What one worker needs to train a family."""

    family_id: str
    seconds: float  # of its worker's time; in a stack, its share of the time that the whole stack takes
    device_bytes: int
    host_bytes: int
    busy: float  # the share of the device's time that one worker fills
    per_gpu: int | None = None  # how many workers a calibration found best; None: as many as `busy` leaves room for
    stack: str = ""  # its shape if it is trained in a stack; families of one stack share elements
    concurrent: int = 1  # about how many families its worker trains at the same time

    @property
    def wall_seconds(self) -> float:
        """The time from its first step to its last."""
        return self.seconds * self.concurrent


@dataclass(frozen=True)
class Element:
    """One array element."""

    bucket: Bucket
    memory_gib: int | float | None
    families: list[str]  # longest first
    workers: int
    seconds: float  # the estimate of its wall time, without the margin

    @property
    def group(self) -> str:
        """The name of its group. The elements of a group ask for the same resources, so they can form one array."""
        return self.bucket.name + (f"-{self.memory_gib:g}g" if self.memory_gib else "")


def needs(plan: Plan, families: list[list[Trial]]) -> list[Need]:
    """What each family needs on the plan's device. `families` hold only the trials that are still to be trained."""
    cluster = plan.config.cluster
    chosen = {family[0].family_id: one for one in plan.executions for family in one.families}
    found = []
    for trials in families:
        one = chosen[trials[0].family_id]
        stacked, processes = one.packing.stack > 1, one.packing.processes
        concurrent = min(one.packing.stack, len(one.families)) if stacked else 1
        model_bytes = plan.memory_bytes(trials[0])
        arithmetic = cluster.arithmetic_seconds(max(trial.flops for trial in trials), plan.device)
        longest = max(plan.estimates[trial.trial_id].seconds for trial in trials)
        on_gpu = plan.device == "cuda"
        checkpoint_bytes = ADAM_BYTES_PER_PARAM * trials[0].params_total  # copied to the host to be saved
        found.append(
            Need(
                family_id=trials[0].family_id,
                seconds=plan.family_seconds(trials) * processes,
                device_bytes=model_bytes if on_gpu else 0,
                host_bytes=PROCESS_BYTES[plan.device] + (checkpoint_bytes if on_gpu else concurrent * model_bytes),
                busy=min(1.0, arithmetic / longest) if on_gpu else 1.0,
                per_gpu=processes if stacked or one.measured else None,
                stack=stack_key(trials[0]) if stacked else "",
                concurrent=concurrent,
            )
        )
    return found


def elements(
    asked: list[Need],
    slurm: SlurmSection,
    threads: int = 1,
    device_bytes: float = math.inf,
    most: float = math.inf,
) -> list[Element]:
    """The elements for these families, the longest bucket first.

    `threads` are those of one worker, `device_bytes` is the memory of one GPU. Where more than `most` elements would be
    needed, the shortest buckets are dropped until the elements are that few or one bucket is left. Raises UserError for
    a family that fits no bucket, unless it may take several turns in the longest one.
    """
    choices = buckets(slurm)
    longest = _capacity(choices[-1], slurm)
    for need in asked:
        if need.wall_seconds > longest and slurm.long_families == "refuse":
            raise UserError(
                f"family {need.family_id}: about {duration(need.wall_seconds)}, times cluster.slurm.time_margin="
                f"{slurm.time_margin:g}, does not fit {choices[-1].name}, the longest of cluster.slurm.time_buckets; "
                "add a longer one, plan smaller budgets, or let it save and go on in several turns: "
                "cluster.slurm.long_families=requeue"
            )
    while True:
        made = _elements(asked, choices, slurm, threads, device_bytes)
        if len(made) <= most or len(choices) == 1:
            return made
        choices = choices[1:]


def workers_for(need: Need, slurm: SlurmSection, threads: int, device_bytes: float) -> int:
    """How many workers an element of such families gets: as many as fill its devices, fit their memory and have cores.

    A worker that keeps only a share of a GPU busy leaves the rest to others. The number is a power of two for each GPU,
    so that there are few kinds of elements.
    """
    by_cores = max(1, slurm.cpus // threads)
    if slurm.gpus == 0:
        return min(by_cores, slurm.workers) if slurm.workers != "auto" else by_cores
    by_memory = max(1.0, device_bytes * DEVICE_MEMORY_SHARE // max(1, need.device_bytes))
    if slurm.workers != "auto":
        return int(min(slurm.workers, by_memory * slurm.gpus))
    per_gpu = need.per_gpu or min(1 / max(need.busy, 1e-9), MOST_WORKERS_PER_GPU)
    return slurm.gpus * 2 ** int(math.log2(max(1, min(per_gpu, by_memory, by_cores / slurm.gpus))))


def _elements(
    asked: list[Need], choices: list[Bucket], slurm: SlurmSection, threads: int, device_bytes: float
) -> list[Element]:
    alike: dict[tuple[Bucket, int, str], list[Need]] = defaultdict(list)
    longest: dict[str, float] = defaultdict(float)  # of each stack, whose families go into one bucket
    for need in asked:
        longest[need.stack] = max(longest[need.stack], need.wall_seconds)
    for need in asked:
        seconds = longest[need.stack] if need.stack else need.seconds
        bucket = next((b for b in choices if seconds <= _capacity(b, slurm)), choices[-1])
        alike[bucket, workers_for(need, slurm, threads, device_bytes), need.stack].append(need)
    made = []
    for (bucket, workers, _), together in alike.items():
        for slots in spread(together, workers, _capacity(bucket, slurm)):
            inside = sorted((need for slot in slots for need in slot), key=_longest_first)
            made.append(
                Element(
                    bucket=bucket,
                    memory_gib=_memory_gib(inside, len(slots), slurm),
                    families=[need.family_id for need in inside],
                    workers=len(slots),
                    seconds=max(_seconds(slot) for slot in slots),
                )
            )
    return sorted(made, key=lambda e: (-e.bucket.seconds, e.group, -e.seconds))


def spread(together: list[Need], workers: int, capacity: float) -> list[list[list[Need]]]:
    """Elements, each a list of at most `workers` slots, each slot the list of families that one worker trains.

    No slot takes more than `capacity` seconds unless it holds one family alone. It begins with as few elements as the
    sum of all seconds allows, gives each family, the longest first, to the slot that is free first, and takes more
    elements where that overflows slots.
    """
    ordered = sorted(together, key=_longest_first)
    most = math.ceil(len(ordered) / workers)
    seconds_in_all = sum(need.seconds for need in ordered)
    count = min(most, max(1, math.ceil(seconds_in_all / (workers * capacity))))
    while True:
        slots: list[list[Need]] = [[] for _ in range(count * workers)]
        free = [(0.0, number) for number in range(len(slots))]
        for need in ordered:
            seconds, number = heapq.heappop(free)
            slots[number].append(need)
            heapq.heappush(free, (seconds + need.seconds, number))
        over = sum(len(slot) > 1 and sum(need.seconds for need in slot) > capacity for slot in slots)
        if not over or count == most:
            dealt = [[slot for slot in slots[number::count] if slot] for number in range(count)]
            return [element for element in dealt if element]
        surplus = over * seconds_in_all / len(ordered)  # the seconds of one average family of each slot that is over
        count = min(most, count + max(1, int(surplus / (workers * capacity))))


def _seconds(slot: list[Need]) -> float:
    """The seconds of a worker's families, which it trains one after the other or several at a time."""
    return max(sum(need.seconds for need in slot), *(need.wall_seconds for need in slot))


def _capacity(bucket: Bucket, slurm: SlurmSection) -> float:
    """How many estimated seconds may be planned into a bucket."""
    return (bucket.seconds - slurm.signal_seconds) / slurm.time_margin


def _memory_gib(inside: list[Need], workers: int, slurm: SlurmSection) -> int | float | None:
    """The host memory of an element, in GiB. `auto` holds the largest families at once, up to a power of two."""
    if slurm.memory_gib != "auto":
        return slurm.memory_gib
    largest = sorted((need.host_bytes for need in inside), reverse=True)[:workers]
    return 2 ** math.ceil(math.log2(max(1, sum(largest) / GIB)))


def _longest_first(need: Need) -> tuple[float, str]:
    return -need.seconds, need.family_id
